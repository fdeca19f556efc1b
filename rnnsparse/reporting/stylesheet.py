"""How report.html looks: on a phone, on a desk, in the dark and on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --soft: #555; --rule: #ccc; --link: #004b87;
  --mark: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --text: #e8e8e8; --soft: #b0b0b0; --rule: #444; --link: #8cc4ff; --mark: #4a3d00; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
.note { font-size: .9rem; color: var(--soft); }
.scroll { overflow-x: auto; position: relative; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 3px solid var(--link); }
table { border-collapse: collapse; font-size: .85rem; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap;
  vertical-align: top; }
thead th { white-space: normal; vertical-align: bottom; border-bottom: 2px solid var(--text); }
th:first-child { position: sticky; left: 0; background: var(--back); text-align: left; white-space: normal;
  min-width: 9rem; max-width: 16rem; overflow-wrap: anywhere; font-weight: 600; }
thead th:first-child { font-weight: 700; }
tr.group th { border-bottom: 1px solid var(--text); padding-top: 1rem; font-weight: 700; }
td small { color: var(--soft); }
.best { font-weight: 700; background: var(--mark); }
.words td, .words th { text-align: left; }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .4em; border: 1px solid var(--text); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.plots { columns: 24rem; column-gap: 1.5rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figcaption { font-size: .9rem; color: var(--soft); }
img { display: block; width: 100%; max-width: 36rem; height: auto; background: #fff; border-radius: 4px; }
details { border-top: 1px solid var(--rule); padding: .4rem 0; }
details > :not(summary) { margin-left: .2rem; }
summary { cursor: pointer; padding: .3rem 0; }
a { color: var(--link); }
:target { scroll-margin-top: 4rem; }
@media print {
  :root { --back: #fff; --text: #000; --soft: #333; --rule: #aaa; --link: #000; --mark: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .3rem; white-space: normal; }
  th:first-child { position: static; }
  .plots { columns: 2; }
  img { max-height: 22cm; width: auto; max-width: 100%; }
  h2, h3, summary { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""
