"""What vLLM's block allocator and scheduler decide, recorded as data that ours are held against.

Run with ``python -m measurements.vllm_traces`` in an environment of its own, with vLLM 0.33.0 and no GPU:
``pip install torch==2.13.0`` (a CPU build serves), ``pip install --no-deps vllm==0.33.0``, and then the
pure-Python packages whose absence it reports, one after the other. No model is loaded: a configuration file
of a tiny OPT is all that vLLM wants to see. It writes ``vllm_traces.json`` beside this file. Neither the
book nor its tests need vLLM.

The format, so that others can replay it::

    {"provenance": {...},
     "allocator": [scenario, ...],    # KVCacheManager and BlockPool
     "scheduler": [scenario, ...]}    # Scheduler, which drives a KVCacheManager of its own

Tokens are written as ``[[first, count], ...]``: runs of consecutive token ids (:func:`tokens_of`).
``num_gpu_blocks`` counts the null block, which has id 0 and is never given out; the free queue begins as
1, 2, ..., ``num_gpu_blocks - 1``.

An allocator scenario has ``name``, ``block_size``, ``num_gpu_blocks``, ``caching`` and ``operations``, each
a list whose first entry says what it is:

``["admit", request, prompt, salt, new_tokens, hit_tokens, hit_blocks, new_blocks, evicted, free_queue]``
    ``get_computed_blocks``, then ``allocate_slots`` of ``new_tokens`` behind the hit. ``new_blocks`` is null
    if it did not fit; then the request is forgotten and nothing else has changed.
``["extend", request, appended, new_tokens, new_blocks, evicted, free_queue]``
    Tokens are appended to the request (maybe none: its prompt comes in chunks), then ``allocate_slots``;
    afterwards ``new_tokens`` more are computed, unless ``new_blocks`` is null.
``["free", request, free_queue]``
    ``free``.

``evicted`` are the blocks, in order, that were in the prefix cache and have been taken for something else.
``free_queue`` is the whole queue after the operation, next to be taken first.

A scheduler scenario has ``name``, ``config``, ``requests`` and ``steps``. Before step ``s`` those requests
are added whose ``step`` is ``s``, in their order (an ``arrival`` for the priority policy is the position in
the list), and then those aborted whose ``abort`` is ``s``. Every request produces exactly ``output_tokens``
tokens unless it is aborted; its j-th (from 0) has id ``OUTPUT_TOKENS + 1000 * (its position) + j``. A step
is ``[scheduled, admitted, preempted, finished, free_blocks]``:

``scheduled``
    ``[[request, tokens], ...]`` in the order of vLLM's ``num_scheduled_tokens``.
``admitted``
    ``[[request, hit_tokens], ...]``: who came from the queue, with the tokens found in the prefix cache.
``preempted``
    Requests in the order in which they lost their blocks.
``finished``
    Requests that produced their last token in this step, in order.
``free_blocks``
    Number of free blocks after the step was scheduled and before its finished requests are freed.

Steps in which nothing could be scheduled are there too; a scenario ends when all requests are gone.
"""

from __future__ import annotations

import json
import os
import platform
import random
import tempfile
from pathlib import Path

PATH = Path(__file__).with_suffix(".json")
OUTPUT_TOKENS = 100_000
MAX_MODEL_LEN = 4096
MAX_STEPS = 400
OPT_CONFIG = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": MAX_MODEL_LEN,
    "vocab_size": 512,
    "torch_dtype": "float32",
}

Runs = list[list[int]]


def tokens_of(runs: Runs) -> list[int]:
    """The token ids that runs of consecutive ones stand for: ``[[7, 2], [0, 1]]`` is 7, 8, 0."""
    return [token for first, count in runs for token in range(first, first + count)]


# vLLM, set up without a model


def kv_cache_config(num_gpu_blocks: int, block_size: int):
    """One layer of full attention."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return KVCacheConfig(
        num_blocks=num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        hash_block_size=block_size,
    )


def new_request(request_id: str, prompt: list[int], output_tokens: int, block_size: int, **options):
    """A request of vLLM that hashes its blocks and stops at nothing but its length."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(max_tokens=output_tokens, ignore_eos=True),
        pooling_params=None,
        block_hasher=get_request_block_hasher(block_size, sha256),
        **options,
    )


class SpiedPool:
    """Notes what a BlockPool evicts, and reads its free queue."""

    def __init__(self, pool) -> None:
        self.pool = pool
        self.evicted: list[int] = []
        evict = pool._maybe_evict_cached_block

        def spy(block) -> bool:
            was_cached = evict(block)
            if was_cached:
                self.evicted.append(block.block_id)
            return was_cached

        pool._maybe_evict_cached_block = spy

    def take_evicted(self) -> list[int]:
        """Blocks evicted since the last call."""
        evicted, self.evicted = self.evicted, []
        return evicted

    def free_queue(self) -> list[int]:
        """All free blocks, next to be taken first."""
        return [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]


# The allocator


class AllocatorRecorder:
    """Drives one KVCacheManager and writes down what it answers."""

    def __init__(self, name: str, num_gpu_blocks: int, block_size: int, caching: bool) -> None:
        from vllm.v1.core.kv_cache_manager import KVCacheManager

        self.scenario = {
            "name": name,
            "block_size": block_size,
            "num_gpu_blocks": num_gpu_blocks,
            "caching": caching,
            "operations": [],
        }
        self.manager = KVCacheManager(
            kv_cache_config(num_gpu_blocks, block_size),
            max_model_len=MAX_MODEL_LEN,
            scheduler_block_size=block_size,
            hash_block_size=block_size,
            enable_caching=caching,
        )
        self.spy = SpiedPool(self.manager.block_pool)
        self.requests: dict[str, object] = {}

    def _record(self, *operation) -> None:
        self.scenario["operations"].append([*operation, self.spy.free_queue()])

    def admit(self, name: str, prompt: Runs, new_tokens: int | None = None, salt: str | None = None) -> bool:
        """Look the prompt up, then take slots for ``new_tokens`` (None: all that is left)."""
        size = self.scenario["block_size"]
        request = new_request(name, tokens_of(prompt), 1, size, cache_salt=salt)
        blocks, hit_tokens, _ = self.manager.get_computed_blocks(request)
        left = request.num_tokens - hit_tokens
        new_tokens = left if new_tokens is None else min(new_tokens, left)
        new = self.manager.allocate_slots(request, new_tokens, hit_tokens, blocks)
        hit_blocks = blocks.get_block_ids()[0]
        new_blocks = None if new is None else new.get_block_ids()[0]
        evicted = self.spy.take_evicted()
        self._record("admit", name, prompt, salt, new_tokens, hit_tokens, hit_blocks, new_blocks, evicted)
        if new is not None:
            request.num_computed_tokens = hit_tokens + new_tokens
            self.requests[name] = request
        return new is not None

    def extend(self, name: str, appended: Runs, new_tokens: int | None = None) -> bool:
        """Append tokens to a request, then take slots for ``new_tokens`` (None: all that is left)."""
        request = self.requests[name]
        request.append_output_token_ids(tokens_of(appended))
        left = request.num_tokens - request.num_computed_tokens
        new_tokens = left if new_tokens is None else min(new_tokens, left)
        new = self.manager.allocate_slots(request, new_tokens)
        new_blocks = None if new is None else new.get_block_ids()[0]
        self._record("extend", name, appended, new_tokens, new_blocks, self.spy.take_evicted())
        if new is not None:
            request.num_computed_tokens += new_tokens
        return new is not None

    def free(self, name: str) -> None:
        """Give a request's blocks back."""
        self.manager.free(self.requests.pop(name))
        self._record("free", name)


def by_hand():
    """Short scenarios, each about one rule."""
    record = AllocatorRecorder("a fully cached prompt computes its last block again", 12, 4, True)
    record.admit("a", [[50, 16]])
    record.admit("b", [[50, 16]])
    record.free("a")
    record.free("b")
    record.admit("c", [[50, 17]])
    yield record.scenario

    record = AllocatorRecorder("a block is known by all that stands before it", 16, 4, True)
    record.admit("a", [[0, 4], [100, 4]])
    record.admit("b", [[200, 4], [100, 4]])
    record.admit("c", [[0, 4], [100, 4], [300, 2]])
    record.admit("d", [[100, 4], [0, 4]])
    yield record.scenario

    record = AllocatorRecorder("a partial block is not shared until it is full", 16, 4, True)
    record.admit("a", [[0, 6]])
    record.admit("b", [[0, 7]])
    record.extend("a", [[6, 1]])
    record.extend("a", [[7, 1]])
    record.admit("c", [[0, 9]])
    record.extend("b", [[7, 1]])
    record.free("a")
    record.admit("d", [[0, 9]])
    yield record.scenario

    record = AllocatorRecorder("the tail of a prompt is evicted first", 9, 4, True)
    record.admit("a", [[0, 14]])
    record.free("a")
    record.admit("b", [[500, 22]])
    record.admit("c", [[0, 14]])
    record.free("b")
    record.admit("c", [[0, 14]])
    yield record.scenario

    record = AllocatorRecorder("salts keep equal prompts apart", 20, 4, True)
    record.admit("a", [[0, 9]], salt="x")
    record.admit("b", [[0, 9]], salt="y")
    record.admit("c", [[0, 9]], salt="x")
    record.admit("d", [[0, 9]])
    record.free("a")
    record.free("c")
    record.admit("e", [[0, 9]], salt="x")
    yield record.scenario

    record = AllocatorRecorder("what does not fit changes nothing", 7, 4, True)
    record.admit("a", [[0, 12]])
    record.admit("b", [[0, 8], [900, 16]])
    record.free("a")
    record.admit("b", [[0, 8], [900, 20]])
    record.admit("b", [[0, 8], [900, 12]])
    record.extend("b", [[912, 6]])
    yield record.scenario

    for caching in (False, True):
        record = AllocatorRecorder(
            f"a prompt in chunks, caching {'on' if caching else 'off'}", 14, 4, caching
        )
        record.admit("a", [[0, 30]], 10)
        record.admit("b", [[0, 20]], 10)
        record.extend("a", [], 10)
        record.admit("c", [[0, 29]], 10)
        record.extend("a", [], 10)
        record.free("a")
        record.free("b")
        record.admit("d", [[0, 29]], 10)
        yield record.scenario


def at_random(seed: int, *, num_gpu_blocks: int, block_size: int, caching: bool, operations: int):
    """Requests with shared beginnings come, grow and go until memory is short."""
    choose = random.Random(seed)
    name = f"random {seed}: blocks of {block_size}, caching {'on' if caching else 'off'}"
    record = AllocatorRecorder(name, num_gpu_blocks, block_size, caching)
    beginnings = [[[1000 * i, choose.randint(1, 4 * block_size)]] for i in range(1, 4)]
    for number in range(operations):
        live = list(record.requests)
        what = choose.random()
        if what < 0.4 or not live:
            ending = [10_000 + 100 * number, choose.randint(1, 2 * block_size)]
            prompt = [*choose.choice(beginnings), ending] if choose.random() < 0.8 else [ending]
            chunk = choose.choice([None, None, block_size + 1])
            record.admit(f"r{number}", prompt, chunk, choose.choice([None, None, None, "salt"]))
        elif what < 0.75:
            request = choose.choice(live)
            count = choose.choice([1, 1, 2, block_size])
            record.extend(request, [[OUTPUT_TOKENS + 100 * number, count]])
        else:
            record.free(choose.choice(live))
    return record.scenario


def allocator_scenarios():
    """All of them."""
    yield from by_hand()
    sizes = [(14, 4), (24, 4), (10, 16), (18, 16)]
    for seed in range(20):
        num_gpu_blocks, block_size = sizes[seed % 4]
        yield at_random(
            seed,
            num_gpu_blocks=num_gpu_blocks,
            block_size=block_size,
            caching=seed % 5 != 4,
            operations=60,
        )


# The scheduler

CONFIG = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "long_prefill_token_threshold": 0,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "scheduler_reserve_full_isl": True,
    "watermark": 0.0,
    "policy": "fcfs",
    "block_size": 16,
    "num_gpu_blocks": 200,
}


def new_scheduler(config: dict, directory: str):
    """vLLM's v1 scheduler, synchronous, on the CPU."""
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.structured_output import StructuredOutputManager

    limits = {key: config[key] for key in CONFIG if key not in CACHE_KEYS}
    # Without chunks vLLM insists that the longest prompt fits one step
    max_model_len = MAX_MODEL_LEN if config["enable_chunked_prefill"] else config["max_num_batched_tokens"]
    vllm_config = VllmConfig(
        model_config=ModelConfig(
            model=directory, dtype="float32", skip_tokenizer_init=True, max_model_len=max_model_len
        ),
        cache_config=CacheConfig(
            block_size=config["block_size"], enable_prefix_caching=config["enable_prefix_caching"]
        ),
        scheduler_config=SchedulerConfig(
            **limits, max_model_len=max_model_len, is_encoder_decoder=False, async_scheduling=False
        ),
        device_config=DeviceConfig("cpu"),
    )
    vllm_config.cache_config.num_gpu_blocks = config["num_gpu_blocks"]
    return Scheduler(
        vllm_config=vllm_config,
        kv_cache_config=kv_cache_config(config["num_gpu_blocks"], config["block_size"]),
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=config["block_size"],
    )


CACHE_KEYS = ("block_size", "num_gpu_blocks", "enable_prefix_caching")


class SchedulerRecorder:
    """Drives one Scheduler with tokens made up by rule, and writes down each step."""

    def __init__(self, name: str, config: dict, requests: list[dict], directory: str) -> None:
        self.config = CONFIG | config
        self.entries = requests
        self.scheduler = new_scheduler(self.config, directory)
        self.preempted: list[str] = []
        self.hits: dict[str, int] = {}
        self._spy()
        self.scenario = {
            "name": name,
            "config": self.config,
            "requests": requests,
            "steps": list(self._steps()),
        }

    def _spy(self) -> None:
        """Note who is preempted, in order, and how much an admission found in the prefix cache."""
        preempt = self.scheduler._preempt_request
        allocate = self.scheduler.kv_cache_manager.allocate_slots

        def spy_preempt(request, *arguments, **options) -> None:
            self.preempted.append(request.request_id)
            preempt(request, *arguments, **options)

        def spy_allocate(request, new_tokens, **options):
            if "num_new_computed_tokens" in options:
                self.hits[request.request_id] = options["num_new_computed_tokens"]
            return allocate(request, new_tokens, **options)

        self.scheduler._preempt_request = spy_preempt
        self.scheduler.kv_cache_manager.allocate_slots = spy_allocate

    def _steps(self):
        """Step after step until all requests are gone."""
        last = max(max(entry["step"], entry.get("abort", 0)) for entry in self.entries)
        for step in range(MAX_STEPS):
            self._come_and_go(step)
            if step > last and not self.scheduler.has_unfinished_requests():
                return
            yield self._one_step()
        raise RuntimeError(f"not done after {MAX_STEPS} steps")

    def _come_and_go(self, step: int) -> None:
        from vllm.v1.request import RequestStatus

        for position, entry in enumerate(self.entries):
            if entry["step"] == step:
                request = new_request(
                    entry["id"],
                    tokens_of(entry["prompt"]),
                    entry["output_tokens"],
                    self.config["block_size"],
                    arrival_time=float(position),
                    priority=entry.get("priority", 0),
                )
                self.scheduler.add_request(request)
        for entry in self.entries:
            if entry.get("abort") == step and entry["id"] in self.scheduler.requests:
                self.scheduler.finish_requests(entry["id"], RequestStatus.FINISHED_ABORTED)

    def _one_step(self) -> list:
        from vllm.v1.outputs import ModelRunnerOutput

        running = {request.request_id for request in self.scheduler.running}
        self.preempted, self.hits = [], {}
        decided = self.scheduler.schedule()
        scheduled = [[name, tokens] for name, tokens in decided.num_scheduled_tokens.items()]
        free_blocks = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        names = [name for name, _ in scheduled]
        self.scheduler.update_from_output(
            decided,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=[self._sampled(name) for name in names],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        admitted = [[name, self.hits[name]] for name in names if name not in running]
        finished = [name for name in names if name not in self.scheduler.requests]
        return [scheduled, admitted, self.preempted, finished, free_blocks]

    def _sampled(self, name: str) -> list[int]:
        """The next token of a request that has caught up; nothing for one with prompt left to compute."""
        request = self.scheduler.requests[name]
        if request.num_computed_tokens < request.num_tokens:
            return []
        position = next(i for i, entry in enumerate(self.entries) if entry["id"] == name)
        return [OUTPUT_TOKENS + 1000 * position + request.num_output_tokens]


def traffic(seed: int, count: int, *, prompts, outputs, every: int = 2, shared: int = 0, **options):
    """Requests at random: ``shared`` tokens of each prompt are those of others, ``every`` steps one comes."""
    choose = random.Random(seed)
    step, requests = 0, []
    for number in range(count):
        prompt = [[1000 * (number + 10), choose.randint(*prompts)]]
        if shared and choose.random() < 0.8:
            prompt.insert(0, [choose.choice([0, 500]), choose.randint(1, shared)])
        entry = {
            "id": f"r{number}",
            "step": step,
            "prompt": prompt,
            "output_tokens": choose.randint(*outputs),
        }
        if "priorities" in options:
            entry["priority"] = choose.randrange(options["priorities"])
        if choose.random() < options.get("aborts", 0):
            entry["abort"] = step + choose.randint(1, 15)
        requests.append(entry)
        step += choose.randint(0, every)
    return requests


def scheduler_setups():
    """Name, configuration and requests of each scenario."""
    short = {"prompts": (1, 40), "outputs": (1, 12)}
    long = {"prompts": (50, 200), "outputs": (1, 10)}
    tight = {"block_size": 4, "num_gpu_blocks": 17}
    for seed in (1, 2):
        yield f"short prompts {seed}", {}, traffic(seed, 10, **short)
        yield f"prompts in chunks {seed}", {}, traffic(seed, 8, **long)
        yield f"few places {seed}", {"max_num_seqs": 2}, traffic(seed, 8, **short)
        yield (
            f"long prompts held back {seed}",
            {"long_prefill_token_threshold": 20},
            traffic(seed, 8, **long),
        )
        yield (
            f"no chunks {seed}",
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 60},
            traffic(seed, 8, prompts=(10, 48), outputs=(1, 10)),
        )
        yield f"all at once {seed}", {"max_num_seqs": 4}, traffic(seed, 10, **short, every=0)
    for seed in range(3, 9):
        few = tight | {"max_num_batched_tokens": 24}
        small = {"prompts": (4, 24), "outputs": (4, 24), "every": 3}
        yield f"preemption {seed}", few, traffic(seed, 8, **small)
        yield (
            f"preemption and prefix caching {seed}",
            few | {"enable_prefix_caching": True},
            traffic(seed, 8, **small, shared=12),
        )
    for seed in (9, 10):
        small = {"prompts": (4, 40), "outputs": (4, 20), "every": 2}
        yield (
            f"admission by the first chunk alone {seed}",
            tight | {"scheduler_reserve_full_isl": False, "max_num_batched_tokens": 16},
            traffic(seed, 8, **small),
        )
        yield f"watermark {seed}", tight | {"watermark": 0.2}, traffic(seed, 8, **small)
        yield (
            f"priorities {seed}",
            tight | {"policy": "priority", "max_num_seqs": 4},
            traffic(seed, 10, **small, priorities=3),
        )
        yield (
            f"prefix caching with room {seed}",
            {"enable_prefix_caching": True, "block_size": 4},
            traffic(seed, 10, **small, shared=40),
        )
        yield (
            f"aborts {seed}",
            tight | {"enable_prefix_caching": seed == 9},
            traffic(seed, 10, **small, aborts=0.5),
        )
    for seed in (11, 12):
        yield (
            f"all together {seed}",
            {
                "enable_prefix_caching": True,
                "block_size": 4,
                "num_gpu_blocks": 30,
                "max_num_batched_tokens": 32,
                "long_prefill_token_threshold": 12,
                "max_num_seqs": 5,
            },
            traffic(seed, 12, prompts=(4, 50), outputs=(4, 30), every=2, shared=30, aborts=0.2),
        )
    alone = [{"id": "alone", "step": 0, "prompt": [[0, 100]], "output_tokens": 3}]
    yield "nobody to hold it back for", {"long_prefill_token_threshold": 20}, alone


def scheduler_scenarios():
    """All of them."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(OPT_CONFIG))
        for name, config, requests in scheduler_setups():
            yield SchedulerRecorder(name, config, requests, directory).scenario


def provenance() -> dict:
    """Where the file comes from."""
    import torch
    import vllm

    return {
        "source": "vLLM, executed: vllm.v1.core.kv_cache_manager.KVCacheManager and "
        "vllm.v1.core.sched.scheduler.Scheduler (synchronous), without a model, on a CPU",
        "recorded_by": "measurements/vllm_traces.py",
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "license": "vLLM is under the Apache License 2.0; these are facts about what it does",
    }


def write(document: dict, path: Path) -> None:
    """As JSON: a line for each operation and each step."""
    compact = {"separators": (",", ":")}
    parts = []
    for kind in ("allocator", "scheduler"):
        scenarios = []
        for scenario in document[kind]:
            log = "operations" if kind == "allocator" else "steps"
            head = json.dumps({key: value for key, value in scenario.items() if key != log}, **compact)
            lines = ",\n".join(json.dumps(entry, **compact) for entry in scenario[log])
            scenarios.append(f'{head[:-1]},"{log}":[\n{lines}\n]}}')
        parts.append(f'"{kind}": [\n' + ",\n".join(scenarios) + "\n]")
    provenance_text = json.dumps(document["provenance"], indent=1)
    path.write_text(f'{{"provenance": {provenance_text},\n' + ",\n".join(parts) + "}\n")


def main() -> None:
    """Record everything."""
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_LOGGING_LEVEL": "ERROR"}
    document = {
        "provenance": provenance(),
        "allocator": list(allocator_scenarios()),
        "scheduler": list(scheduler_scenarios()),
    }
    write(document, PATH)


if __name__ == "__main__":
    main()
