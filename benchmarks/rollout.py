"""The cost of a rollout: our decoder beside transformers' generate, and beside the limit of the machine.

Both sample from the same model, which has the shape of SmolLM2-135M and random weights in bfloat16. They take turns in
one process. There are two workloads:

* "equal": one prompt of 80 tokens for all sequences, all of which run to the length limit.
* "mixed": prompts of four tasks and of their reflection steps, 79 to 256 tokens long. Sequences end at lengths that
  occurred in a training run. The ends are forced, so that both decoders write the same number of useful tokens. After
  its end, generate pads a sequence until the longest one is written or, in a row of its own, until the limit.

The limit is the least time that reading and multiplying the weights takes. For a step it is the larger of weight bytes
/ memory bandwidth and operations / matmul rate, both with the output head, for the sequences that still run. For the
prompts it is the operations of their distinct tokens / matmul rate. Bandwidth and rate are measured in the same
process, the rate on the model's largest matrix (the output head), with as many rows as the batch has sequences.

"tokens_s" counts the tokens computed, padding included, and "useful_tokens_s" those up to each sequence's end. "cpu_s"
is the CPU time of the process, the figure that other load on the machine disturbs least. Prints a table; `--csv FILE`
also saves it.

    python -m benchmarks.rollout --csv rollout.csv
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from etpo_paper.model.decoder import LlamaDecoder, sample
from etpo_paper.model.trunk import packed

END = 2
# Sixteen evenly spaced quantiles of the lengths of actions in a run of the scale laptop, whose limit is 96 tokens.
LENGTHS = (31, 34, 35, 37, 40, 41, 43, 44, 46, 49, 53, 57, 60, 64, 68, 85)
PROMPT = 80
SMOLLM2 = dict(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, rope_theta=100000.0,
)  # fmt: skip
SMALL = dict(
    vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2,
)  # fmt: skip


def build(shape: dict[str, Any], device: str) -> LlamaForCausalLM:
    """A model of a shape (arguments of `LlamaConfig`) with random weights in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, eos_token_id=END, pad_token_id=END, bos_token_id=1)
    return LlamaForCausalLM(config).eval().to(torch.bfloat16).to(device)


def workload(name: str, batch: int, limit: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of the prompts, and the number of tokens after which each sequence ends."""
    if name == "equal":
        return [list(range(3, 3 + PROMPT))] * batch, [limit] * batch
    prompts = []
    for row in range(batch):
        # The prompts of four tasks begin alike. A quarter of the sequences is in reflection steps, which all differ.
        prompt = [5, 6, 7, 8, 9, 10, 11] + [100 + row % 4] * 72
        if row // 4 % 4 == 3:
            prompt += [200 + row] * (51 + 42 * (row % 4))
        prompts.append(prompt)
    lengths = [max(1, LENGTHS[(5 * row + 7) % 16] * limit // 96) for row in range(batch)]
    return prompts, lengths


class ForcedEnds:
    """A decoder whose sequences end exactly at given lengths; it takes one token of each sequence a pass."""

    takes_back = False

    def __init__(self, decoder: LlamaDecoder, lengths: Sequence[int]):
        self.decoder, self.lengths, self.written = decoder, torch.tensor(lengths, device=decoder.device), 0

    def _forced(self, logits: Tensor, lengths: Tensor) -> Tensor:
        self.written += 1
        logits[:, END] = torch.where(lengths == self.written, 1e4, float("-inf")).to(logits.dtype)
        return logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.prefill`."""
        return self._forced(self.decoder.prefill(prompts), self.lengths)

    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.step`."""
        return self._forced(self.decoder.step(tokens), self.lengths[[len(t) > 0 for t in tokens]])

    def keep(self, rows: Sequence[int]) -> None:
        """See `Decoder.keep`."""
        self.lengths = self.lengths[rows]
        self.decoder.keep(rows)


class ForcedEndsOfGenerate(LogitsProcessor):
    """Makes sequences of transformers' generate end exactly at given lengths."""

    def __init__(self, lengths: Sequence[int], prompt: int, device: str):
        self.lengths, self.prompt = torch.tensor(lengths, device=device), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [batch, vocabulary] of the next token, in which the end token is certain or impossible."""
        due = self.lengths == input_ids.shape[1] - self.prompt + 1
        scores[:, END] = torch.where(due, 1e4, float("-inf")).to(scores.dtype)
        return scores


def ours(decoder: LlamaDecoder, prompts: list[list[int]], lengths: list[int], limit: int) -> int:
    """Samples with our decoder; returns the number of useful tokens."""
    generator = torch.Generator().manual_seed(0)
    actions = sample(ForcedEnds(decoder, lengths), prompts, END, limit, generator)
    return sum(len(action.tokens) for action in actions)


def useful_tokens(written: Tensor, end: int) -> int:
    """The number of tokens written [batch, length] up to each sequence's first end token, that token included."""
    return int(((written == end).cumsum(1) - (written == end).long() == 0).sum())


@torch.inference_mode()
def sampled_by_generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], end: int, limit: int, ends: LogitsProcessorList
) -> int:
    """Samples with transformers, with prompts padded on the left; returns the number of useful tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[end] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    written = model.generate(
        ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit,
        eos_token_id=end, pad_token_id=end, logits_processor=ends,
    )[:, longest:]  # fmt: skip
    return useful_tokens(written, end)


def generate(model: LlamaForCausalLM, prompts: list[list[int]], lengths: list[int], limit: int) -> int:
    """Samples with transformers until the forced ends; returns the number of useful tokens."""
    forced = ForcedEndsOfGenerate(lengths, max(map(len, prompts)), model.device)
    return sampled_by_generate(model, prompts, END, limit, LogitsProcessorList([forced]))


def fastest(function: Callable[[], object], repeats: int) -> float:
    """The shortest time of a call in seconds, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


class Limits:
    """The measured limits of the machine.

    Args:
        model: the model whose weights are read and multiplied.
        repeats: how often each measurement is repeated.
        megabytes: how much is read to measure the bandwidth.
    """

    def __init__(self, model: LlamaForCausalLM, repeats: int, megabytes: int):
        self.device, self.repeats = model.device, repeats
        self.rates: dict[int, float] = {}
        self.weight = model.lm_head.weight.detach()
        self.product = packed(self.weight)
        # The embedding is the head's matrix as well, and a step reads only a few of its rows: it counts once.
        self.parameters = model.num_parameters()
        numbers = torch.zeros(megabytes * 250_000, device=self.device)
        self.bandwidth = 4 * numbers.numel() / fastest(numbers.amax, 3 * repeats)

    @torch.inference_mode()
    def rate(self, rows: int) -> float:
        """Operations a second of a product with so many rows, in the fastest layout of its weight."""
        if rows not in self.rates:
            x = torch.randn(rows, self.weight.shape[1], device=self.device).to(self.weight.dtype)
            seconds = fastest(lambda: self.product(x), 5 * self.repeats)
            self.rates[rows] = 2 * rows * self.weight.numel() / seconds
        return self.rates[rows]

    def seconds(self, prompts: list[list[int]], lengths: list[int]) -> float:
        """The least time of a rollout in seconds."""
        tokens = sum(map(len, set(map(tuple, prompts))))
        total = 2 * tokens * (self.parameters - self.weight.numel()) / self.rate(512)
        for step in range(2, max(lengths) + 1):  # the first token comes from the pass over the prompts
            running = sum(length >= step for length in lengths)
            bytes_read = self.parameters * self.weight.element_size()
            operations = 2 * running * self.parameters
            total += max(bytes_read / self.bandwidth, operations / self.rate(len(lengths)))
        return total


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints the table and saves it; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 64], help="sequences side by side")
    parser.add_argument("--kinds", nargs="+", default=["equal", "mixed"], choices=["equal", "mixed"], help="workloads")
    parser.add_argument("--limit", type=int, default=96, help="longest action in tokens")
    parser.add_argument("--repeats", type=int, default=5, help="rollouts of each kind, after one to warm up")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(SMALL if chosen.small else SMOLLM2, device)
    decoder = LlamaDecoder(model, torch.bfloat16)
    limits = Limits(model, chosen.repeats, 10 if chosen.small else 500)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{name}; torch {torch.__version__}; OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY')}; load "
        f"{os.getloadavg()[0]:.1f}; {limits.bandwidth / 1e9:.1f} GB/s; matmul "
        + ", ".join(f"{limits.rate(n) / 1e9:.0f} GFLOP/s at {n} rows" for n in (*chosen.batches, 512))
        + "\n",
        flush=True,
    )

    rows: list[dict[str, Any]] = []
    for kind in chosen.kinds:
        for batch in chosen.batches:
            prompts, lengths = workload(kind, batch, chosen.limit)
            useful, steps = sum(lengths), max(lengths)
            runs = {
                "our decoder": lambda p=prompts, n=lengths: ours(decoder, p, n, chosen.limit),
                "transformers generate": lambda p=prompts, n=lengths: generate(model, p, n, chosen.limit),
            }
            expected = dict.fromkeys(runs, useful)
            if kind == "mixed":
                full = [chosen.limit] * batch
                runs["generate to the limit"] = lambda p=prompts, n=full: generate(model, p, n, chosen.limit)
                expected["generate to the limit"] = sum(full)
            walls, cpus = {run: [] for run in runs}, {run: [] for run in runs}
            for number in range(chosen.repeats + 1):
                for run, function in runs.items():
                    started, cpu = time.perf_counter(), time.process_time()
                    if function() != expected[run]:
                        raise RuntimeError(f"{run} did not write the {expected[run]} tokens it was to write")
                    if number > 0:
                        walls[run].append(time.perf_counter() - started)
                        cpus[run].append(time.process_time() - cpu)
            limit = limits.seconds(prompts, lengths)
            walls, cpus = {"limit": [limit], **walls}, {"limit": [], **cpus}
            slowest = statistics.median(walls["transformers generate"])
            for run, seconds in walls.items():
                median = statistics.median(seconds)
                length = chosen.limit if run == "generate to the limit" else steps
                computed = batch * length if "generate" in run else useful
                row = {
                    "workload": kind,
                    "batch": batch,
                    "run": run,
                    "seconds": f"{median:.3f}",
                    "seconds_min": f"{min(seconds):.3f}",
                    "cpu_s": f"{statistics.median(cpus[run]):.3f}" if cpus[run] else "",
                    "ms_step": f"{median / length * 1000:.1f}",
                    "tokens_s": f"{computed / median:.0f}",
                    "useful_tokens_s": f"{useful / median:.0f}",
                    "times_limit": f"{median / limit:.2f}",
                    "times_faster_than_generate": f"{slowest / median:.2f}",
                }
                for line in (row,) if rows else ({key: key for key in row}, row):
                    widths = (max(len(key), 21 if key == "run" else 0) for key in row)
                    print("  ".join(str(v).ljust(w) for v, w in zip(line.values(), widths, strict=True)), flush=True)
                rows.append(row)
    if chosen.csv:
        with chosen.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return rows


if __name__ == "__main__":
    main()
