"""What the engine that generates text asks of a library: a model's vocabulary, and a context that computes rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from backends.generation.media import MediaTower
    from backends.generation.row_layout import Embedding
    from backends.messages import KvLayout, Sampling
    from backends.prompts.control import Control
    from backends.prompts.fim import InfillMarks

INTERRUPTED: Final = 2
"""The status of a pass that `DecoderContext.stop_flag` has ended: some of its rows may be computed."""
FULL: Final = "the model's KV pool is full; retry in a moment"


class TokenSampler(Protocol):
    """One sequence's way of choosing. `greedy` says that the best logit is all there is to it."""

    greedy: bool

    def sample(self, row: int) -> int:
        """Draw and accept a token from row `row` of the last batch; not for greedy samplers."""
        ...

    def accept(self, token: int) -> None:
        """Take in a token that another sampler of the same rules has drawn."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class DecoderModel(Protocol):
    """A vocabulary, and the little that an engine wants to know of the weights behind it."""

    n_vocab: int
    tower: MediaTower | None
    """What makes rows of images and sounds; None where it reads text alone."""
    identity: str
    """What tells its files from those of another model, or of a later time."""

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of `text`, without BOS or EOS; special-token literals count as such only with `parse_special`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token; empty for control tokens."""
        ...

    def literal(self, token: int) -> bytes:
        """The bytes of one token, control tokens included."""
        ...

    def controls(self) -> list[Control]:
        """Every control token with a literal."""
        ...

    def ends(self) -> NDArray[np.int32]:
        """`(n,) int32`: the tokens that end a generation."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that begins every prompt, where the model wants one."""
        ...

    @property
    def opening(self) -> int | None:
        """What an empty prompt becomes."""
        ...

    def special_texts(self) -> dict[str, str]:
        """`bos_token`, `eos_token` ... as chat templates expect them."""
        ...

    def chat_template(self, name: str | None = None) -> str | None:
        """The source of the model's chat template, or of its named variant."""
        ...

    def infill_marks(self) -> InfillMarks | None:
        """The tokens of fill-in-the-middle; None when the vocabulary has none."""
        ...

    def close(self) -> None:
        """Free the weights."""
        ...


class EmbeddingPass(Protocol):
    """Computes rows of media, which are no tokens."""

    joins: bool
    """They wait for the batch and are computed in one pass with its tokens; otherwise each medium's at once."""

    def decode(self, embedding: Embedding, first: int, count: int, *, slot: int, position: int) -> int:
        """Compute so many of a medium's rows from `first` on, in the sequence of one slot; statuses are `decode`'s.

        `position` is that of the medium's first row.
        """
        ...


class DecoderContext(Protocol):
    """The cells of `parallel` sequences, and a batch that is written, computed and read row by row."""

    layout: KvLayout
    forgets: bool
    """Some layers keep a window or a running state, so that a prefix is there only where a checkpoint was taken."""
    splits: bool
    """A checkpoint is only what those layers keep, and the others' part comes from any state that begins alike;
    otherwise it is a whole state.
    """
    cuts_back: bool
    """A sequence's newest positions can be taken back, so that tokens can be computed that may not stay."""
    counts_rows: bool
    """Lengths that it is given are rows; otherwise positions, which rows of media may share."""
    n_cells: int
    max_batch: int
    """Rows of the batch."""
    tokens: NDArray[np.int32]
    """`(max_batch,)`, like `positions`, `sequences` and `outputs`: one entry per row of the batch."""
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    """The slot each row belongs to; a slot's rows stand together, in the order of their positions."""
    outputs: NDArray[np.int8]
    """1 where logits are wanted."""
    shortage: str
    """Why the last batch had no room, for its jobs."""
    one_adapter: bool
    """A batch is computed with one adapter, or none, for all its rows; otherwise each row has its slot's."""
    stop_flag: NDArray[np.uint8] | None
    """`(1 or more,)`: a pass ends soon, as `INTERRUPTED`, once another thread sets the first byte to 1. It is
    0 again before the next one. None where a pass cannot be ended, or leaves no state that could be cut back.
    """
    embeddings: EmbeddingPass | None
    """What computes rows of media; None where the model reads text alone."""

    def decode(self, n_tokens: int, *, decoding: bool = False) -> int:
        """Compute the first rows of the batch: 0, 1 where the cells have no room, or INTERRUPTED; done on return.

        `decoding`: none is of a prompt, so that each is to come out as if it were the only one of its sequence.
        """
        ...

    def adapt(self, slot: int, adapter: str) -> None:
        """From now on compute a slot's rows with this adapter, which is loaded; empty: with the base alone."""
        ...

    def logits(self, n_outputs: int) -> NDArray[np.float32]:
        """`(n_outputs, n_vocab) float32`, writable: the last batch's outputs in order."""
        ...

    def sampler(self, sampling: Sampling, *, prompt: Sequence[int], choice: int) -> TokenSampler:
        """How one choice's tokens are chosen; `prompt` is what a repetition penalty has seen."""
        ...

    def clear(self, slot: int) -> None:
        """Drop everything a sequence holds."""
        ...

    def least(self, slot: int) -> int:
        """The shortest prefix that a saved state of a sequence can be cut to."""
        ...

    def least_shared(self, slot: int) -> int:
        """The shortest prefix of a sequence that `share` can give without a checkpoint."""
        ...

    def trim(self, slot: int, length: int) -> bool:
        """Keep the first `length` positions of a sequence; False where it cannot be cut there."""
        ...

    def share(self, source: int, target: int, length: int, *, checkpoint: NDArray[np.uint8] | None = None) -> bool:
        """Give the empty `target` the first `length` positions of `source`, where it had a checkpoint or can be cut;
        False where that cannot be.
        """
        ...

    def state_bytes(self, slot: int, *, partial: bool = False) -> int:
        """What `save_into` needs."""
        ...

    def save_into(self, slot: int, target: NDArray[np.uint8], *, partial: bool = False) -> bool:
        """Write a sequence's state, or a checkpoint, into `(state_bytes,) uint8`; False where it does not fit or is
        not there yet.
        """
        ...

    def save(self, slot: int) -> NDArray[np.uint8] | None:
        """The state of one sequence, in host memory; None while it is not there yet."""
        ...

    def restore(self, slot: int, state: NDArray[np.uint8]) -> bool:
        """Put a saved state into an empty sequence; False, and the sequence stays empty, when it is refused."""
        ...

    def go_back(self, slot: int, checkpoint: NDArray[np.uint8], length: int) -> bool:
        """Cut a sequence to the `length` positions of a checkpoint, which it begins with; False, and it is empty, when
        that is refused.
        """
        ...

    def close(self) -> None:
        """Free the cells."""
        ...
