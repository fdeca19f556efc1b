"""A dense network of the sparse one's size."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from rnnsparse.errors import UserError
from rnnsparse.nn.language_model import CharLM
from rnnsparse.settings.model import ModelConfig
from rnnsparse.settings.sparsity import BudgetConfig
from rnnsparse.sparsity.allocation import allocate
from rnnsparse.sparsity.method import register
from rnnsparse.sparsity.methods.dense import Dense


@register("small_dense")
@dataclass(kw_only=True)
class SmallDense(Dense):
    """Train a dense network with so few units that it has as many weights as the sparse one has connections."""

    paper = "baseline of Evci et al. 2020"

    def model_config(self, config: ModelConfig, budget: BudgetConfig, vocab_size: int) -> ModelConfig:
        def shape(hidden_size: int) -> ModelConfig:
            # Where the state itself meets a tied output, the embedding has to follow.
            follows = config.tie_embeddings and not config.readout_dims
            untied = replace(config, hidden_size=hidden_size, tie_embeddings=False)
            width = untied.output_features if follows else config.embedding_dim
            return replace(untied, embedding_dim=width, tie_embeddings=config.tie_embeddings)

        def size(hidden_size: int) -> int:
            return sum(w.positions for w in CharLM(shape(hidden_size), vocab_size).sparse_weights().values())

        weights = list(CharLM(config, vocab_size).sparse_weights().values())
        wanted = sum(b.entries for b in allocate(weights, budget))
        larger = 1 + bisect_left(range(1, config.hidden_size + 1), wanted, key=size)
        best = min(larger, max(1, larger - 1), key=lambda hidden_size: abs(size(hidden_size) - wanted))
        if best == 1 and size(1) > wanted:
            raise UserError(
                f"sparsity.sparsity: {budget.sparsity} leaves {wanted:,} connections, fewer than the {size(1):,} "
                "weights of a dense network with one unit; lower it, or shrink embedding_dim and readout_dims"
            )
        return shape(best)
