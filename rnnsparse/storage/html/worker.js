"use strict";
// Answers the page from the engine, which stands before this in the worker.

/** A new task takes the place of one that goes on; work is cut in slices, so that a stop is heard. */
function serve(port) {
  let model, current = 0, writer, trace;
  const SLICE = 100; // milliseconds

  const pause = () => new Promise(done => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); done(); };
    port2.postMessage(0);
  });

  /** Do `work` until it returns false or the task ends; tell the page after each slice. */
  async function inSlices(task, work, tell) {
    for (let more = true; more && task === current;) {
      const until = performance.now() + SLICE;
      while (more && performance.now() < until) more = work();
      tell();
      await pause();
    }
    return task === current;
  }

  const TASKS = {
    load(_, { header, weights }) {
      model = new Model(header, weights);
      return connectivity(model, 64);
    },
    async write(task, options, tell) {
      const { prompt, seed, length, stops, goOn } = options, started = performance.now();
      if (!goOn || !writer) writer = new Writer(model, prompt, seed);
      const ending = new Ending(stops);
      let written = 0, text = "";
      const send = () => { tell({ text, written, reading: writer.unread.length > 1 }); text = ""; };
      if (!await inSlices(task, () => writer.read(), send)) return {};
      const reading = performance.now() - started;
      const more = () => {
        text += ending.push(writer.write(options));
        return ++written < length && !ending.reached;
      };
      await inSlices(task, length ? more : () => false, send);
      return { text: ending.held, written, stopped: ending.reached, seconds: (performance.now() - started - reading) / 1000 };
    },
    async score(task, { text }, tell) {
      const scorer = new Scorer(model, text), size = scorer.symbols.length;
      let found = [];
      const more = () => scorer.at < size && found.push(scorer.next()) && scorer.at < size;
      const send = () => { tell({ found, at: scorer.at, size }); found = []; };
      await inSlices(task, more, send);
      return { bits: scorer.bits, characters: scorer.characters };
    },
    async trace(task, { text }, tell) {
      const reading = new Trace(model, text), size = reading.symbols.length;
      const more = () => { if (reading.at < size) reading.next(); return reading.at < size; };
      if (!await inSlices(task, more, () => tell({ at: reading.at, size })) || !size) return {};
      trace = reading;
      return { ranking: trace.ranking(), characters: trace.at, hidden: model.hidden };
    },
  };

  port.onmessage = async ({ data: { task, kind, options } }) => {
    if (kind === "unit") return port.postMessage({ task, done: trace.unit(options.unit) });
    current = task;
    try {
      const done = await TASKS[kind]?.(task, options, news => port.postMessage({ task, news }));
      port.postMessage({ task, done });
    } catch (error) {
      port.postMessage({ task, error: error.message });
    }
  };
}

serve(self);
