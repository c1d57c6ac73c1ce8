"""One running batch over any number of rows: steered rows first try what was said unsteered, then decode what differs.

A draft is exact: at each of its positions the steered logits and the row's own noise draw a token; as long as that is the
draft's token the next position is already computed, and from the first other token on the row goes on by itself. Below
the lowest edited block prompt and draft are computed once for all rows that share them.
"""

from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from personascope.backends.drawing import Completion, Drawn, Prompt, Sampling, draw
from personascope.backends.engine import Batch
from personascope.backends.prefill import Tried
from personascope.backends.steering import Steer

Drafts = dict[tuple[tuple[int, ...], str], Completion]
"""What the unsteered model said, by `Prompt.name`."""
MOST_ROWS = 256
"""Rows at once on a CPU, whatever the token budget: more of them leave its caches and cost more each."""
MOST_LOGITS = 2**27
"""Logits held at once while drafts are tried."""
_FITTING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tokens at once that a model was found to have memory for, if that is less than asked."""


@dataclass
class _Trust:
    """How many draft tokens an edit kept so far: an edit that turns every answer round at once is offered few."""

    kept: dict[tuple[tuple[int, int], ...], list[int]] = field(default_factory=dict)

    def offer(self, edit: tuple[tuple[int, int], ...], length: int) -> int:
        """How much of a draft to try."""
        kept = self.kept.get(edit)
        return length if kept is None else min(length, 2 * kept[0] // kept[1] + 2)

    def note(self, edit: tuple[tuple[int, int], ...], kept: int) -> None:
        """What one row kept."""
        count = self.kept.setdefault(edit, [0, 0])
        count[0] += kept
        count[1] += 1


def refilled(
    model: nn.Module,
    prompts: list[Prompt],
    sampling: Sampling,
    steers: list[Steer],
    stops: set[int],
    rows: Sequence[int] | None = None,
    drafts: Drafts | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Yield (row, completion) of the rows wanted, by default all. Where the device's memory is too small for a batch, half of it is tried.

    With `drafts`, every row wanted must be steered and have one.

    Raises:
        torch.OutOfMemoryError: not even one row has room.
    """
    wanted = set(range(len(prompts)) if rows is None else rows)
    while wanted:
        fitting = replace(sampling, batch_tokens=min(sampling.batch_tokens, _FITTING.get(model, sampling.batch_tokens)))
        try:
            for row, said in _refilled(_Run(model, prompts, fitting, steers, stops, drafts), wanted):
                wanted.discard(row)
                yield row, said
        except torch.OutOfMemoryError:
            if fitting.batch_tokens <= max(len(prompts[row].ids) for row in wanted) + sampling.max_tokens:
                raise
            _FITTING[model] = fitting.batch_tokens // 2
        # Not before the error is forgotten, which holds on to what was computed.
        if wanted and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refilled(run: "_Run", wanted: Set[int]) -> Iterator[tuple[int, Completion]]:
    waiting = deque(row for row in run.batch.prefill.order() if row in wanted)
    while waiting or len(run.batch):
        taken = run.take(waiting)
        if taken:
            yield from run.admit(taken)
        if len(run.batch) and not (waiting and run.free(waiting[0])):
            yield from run.step()


class _Run:
    """The batch, what its rows have drawn, and the rules by which rows enter."""

    def __init__(
        self, model: nn.Module, prompts: list[Prompt], sampling: Sampling, steers: list[Steer], stops: set[int], drafts: Drafts | None
    ) -> None:
        self.prompts, self.sampling, self.trust = prompts, sampling, _Trust()
        self.stops = torch.tensor(sorted(stops))
        self.drafts: list[list[int]] | None = None
        if drafts is not None:
            end = sorted(stops)[:1]
            said = {name: one.ids + (end if one.stop == "end" else []) for name, one in drafts.items()}
            self.drafts = [said[prompt.name] for prompt in prompts]
        self.batch = Batch(model, [p.tokens for p in prompts], steers, self.drafts)
        self.drawn = Drawn.none(sampling, [])
        self.group = -1

    def free(self, row: int) -> int:
        """Places to fill, if `row` comes next; 0 until an eighth is free, because few rows cost nearly as much as many."""
        places = max(1, self.sampling.batch_tokens // self._room(row))
        if self.batch.device.type == "cpu":
            places = min(places, MOST_ROWS)
        left = places - len(self.batch)
        return max(left, 0) if left >= max(1, places // 8) else int(not len(self.batch))

    def _room(self, row: int) -> int:
        """Positions that the longest row may need: those in use, or `row`."""
        return max([len(self.prompts[i].ids) for i in [row, *self.batch.rows.tolist()]]) + self.sampling.max_tokens

    def take(self, waiting: deque[int]) -> list[int]:
        """The rows that enter now."""
        if not waiting or not (free := self.free(waiting[0])):
            return []
        room = self._room(waiting[0])
        if self.drafts is not None:
            self._sort(waiting)
            longest = self._offer(waiting[0]) + max(0, len(self.prompts[waiting[0]].ids) - len(self.prompts[waiting[-1]].ids))
            free = max(1, min(free, MOST_LOGITS // (longest * self.batch.vocabulary)))
        taken = [waiting.popleft() for _ in range(min(free, len(waiting)))]
        self.batch.make_room(len(self.batch) + len(taken), room)
        return taken

    def _sort(self, waiting: deque[int]) -> None:
        """Put the next group's rows in order of what they are offered, so that rows tried together waste little."""
        groups = self.batch.prefill.groups
        if groups[waiting[0]] != self.group:
            self.group = groups[waiting[0]]
            rows = []
            while waiting and groups[waiting[0]] == self.group:
                rows.append(waiting.popleft())
            waiting.extendleft(sorted(rows, key=self._offer))

    def _offer(self, row: int) -> int:
        assert self.drafts is not None
        return self.trust.offer(self.batch.prefill.signatures[row], len(self.drafts[row]))

    def admit(self, rows: list[int]) -> Iterator[tuple[int, Completion]]:
        """Let rows in; with drafts, yield those that need no more."""
        state = Drawn.none(self.sampling, [self.prompts[row].key for row in rows])
        if self.drafts is None:
            self.batch.admit(rows)
            self.drawn.admit(state)
            return
        upto = max(map(self._offer, rows))
        tried = self.batch.prefill.drafted(rows, upto)
        ended = self._try(rows, state, tried, upto)
        for row, count in zip(rows, state.count.tolist(), strict=True):
            self.trust.note(self.batch.prefill.signatures[row], count)
        done = ended | (state.count == self.sampling.max_tokens)
        numbers = torch.tensor(rows)
        left = state.at(~done)
        lengths = torch.tensor([len(self.prompts[row].ids) for row in numbers[~done].tolist()], dtype=torch.long) + left.count - 1
        last = left.ids.gather(1, (left.count - 1).clamp(min=0)[:, None])[:, 0]
        self.batch.enter(numbers[~done].tolist(), tried.stems, tried.index[~done], lengths, last)
        self.drawn.admit(left)
        yield from zip(numbers[done].tolist(), state.at(done).completions(ended[done]), strict=True)

    @torch.inference_mode()
    def _try(self, rows: list[int], state: Drawn, tried: Tried, upto: int) -> Tensor:
        """Draw along the drafts, at most `upto` tokens, as far as each row keeps to its own; returns which rows ended (n,)."""
        assert self.drafts is not None
        said = [self.drafts[row][:upto] for row in rows]
        draft = torch.tensor([ids + [-1] * (upto - len(ids)) for ids in said])
        start = torch.tensor([len(self.prompts[row].ids) - 1 for row in rows]) - tried.first
        going, ended = torch.ones(len(rows), dtype=torch.bool), torch.zeros(len(rows), dtype=torch.bool)
        for step in range(upto):
            at = (going & (draft[:, step] >= 0)).nonzero()[:, 0]
            if not len(at):
                break
            device = tried.logits.device
            logits = tried.logits[tried.index[at].to(device), (start[at] + step).to(device)]
            tokens = self._draw(logits, state.noise[at, step])
            state.ids[at, step], state.count[at] = tokens, step + 1
            ended[at] = torch.isin(tokens, self.stops)
            going[at] = (tokens == draft[at, step]) & ~ended[at]
        return ended

    def _draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        return draw(logits.float(), uniform.to(logits.device), self.sampling.temperature, self.sampling.top_p).cpu()

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion]]:
        """Decode one position of every row; returns those that end."""
        tokens = self._draw(self.batch.step(), self.drawn.uniform())
        ended = torch.isin(tokens, self.stops)
        finished = self.drawn.take(tokens) | ended
        self.batch.tokens = tokens
        if not finished.any():
            return []
        done = list(zip(self.batch.rows[finished].tolist(), self.drawn.at(finished).completions(ended[finished]), strict=True))
        self.drawn = self.drawn.at(self.batch.keep(~finished))
        return done
