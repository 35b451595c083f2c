"""What the plans compute on tensors: against SDPA, gradients against autograd, bytes against the cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gpuedu.flash_attention.cost import FP32_TENSORS, extra_elements, traffic
from gpuedu.flash_attention.plan import AttentionShape, Tiles, varlen
from gpuedu.flash_attention.run import (
    Odometer,
    attention,
    attention_varlen,
    combine_parts,
    keep_mask,
    peak_extra_bytes,
    philox,
)

from .shapes import attentions, sees, tiles

WAYS = {
    "version 2": {},
    "version 2, two passes": {"backward": "two_pass_backward"},
    "version 1": {"plan": "version_1"},
    "split-KV": {"plan": "split_kv", "splits": 3},
    "standard": {"plan": "standard"},
}
BACKWARDS = {
    "version_1": "version_1_backward",
    "version_2": "version_2_backward",
    "split_kv": "version_2_backward",
    "standard": "standard_backward",
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def tensors(shape, dtype=torch.float64, seed=0, scale=1.0):
    """q, k, v of an AttentionShape; gradients wanted."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(shape.heads, shape.queries), (shape.kv_heads, shape.keys), (shape.kv_heads, shape.keys)]
    made = [torch.randn(shape.batch, *size, shape.head_dim, generator=generator) * scale for size in sizes]
    return [t.to(dtype).requires_grad_() for t in made]


def seen(shape):
    """The mask, from the definition: True where a query sees a key."""
    pairs = [[sees(shape, i, j) for j in range(shape.keys)] for i in range(shape.queries)]
    return torch.tensor(pairs, dtype=torch.bool).reshape(shape.queries, shape.keys)


def reference(q, k, v, mask, *, scale=None, softcap=0.0, alibi=None, keep=None, dropout_p=0.0):
    """Attention in five lines, all scores at once; O and LSE."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # not repeat
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi is not None:
        queries, keys = mask.shape
        distance = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
        scores = scores - alibi[:, None, None] * distance.abs()
    scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = torch.softmax(scores, -1).nan_to_num(0.0)
    lse = torch.logsumexp(scores, -1)
    if keep is not None:
        probabilities = probabilities * keep / (1 - dropout_p)
    return probabilities @ v, lse


def options_of(shape):
    return {"causal": shape.causal, "window": shape.window}


def gradients(out, inputs, seed=1):
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    return torch.autograd.grad(out, inputs, direction)


# Against SDPA ------------------------------------------------------------------------------------

lengths = st.integers(1, 300)


@given(
    queries=lengths, keys=lengths, kv_heads=st.integers(1, 2), group=st.sampled_from([1, 2, 4]),
    causal=st.booleans(), size=st.sampled_from([16, 50, 128]), way=st.sampled_from(list(WAYS.values())),
)  # fmt: skip
@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:Lower right causal bias")
def test_equals_sdpa_forward_and_backward(queries, keys, kv_heads, group, causal, size, way):
    shape = AttentionShape(queries, keys, 16, kv_heads * group, kv_heads, causal=causal)
    inputs = tensors(shape)
    ours = attention(*inputs, causal=causal, tiles=Tiles(size, size), **way)
    bias = causal_lower_right(queries, keys) if causal else None
    theirs = sdpa(*inputs, attn_mask=bias, enable_gqa=True)
    blind = (~seen(shape)).all(-1)  # SDPA says NaN or 0 there, depending on the version
    theirs = torch.where(blind[:, None], torch.zeros_like(theirs), theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    if not blind.any():
        for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


@given(shape=attentions(40, shortest=1), tile=tiles(24), way=st.sampled_from(list(WAYS.values())))
@settings(max_examples=60)
def test_windows_and_blind_rows_equal_an_explicit_mask(shape, tile, way):
    inputs, mask = tensors(shape), seen(shape)
    out, lse = attention(*inputs, **options_of(shape), tiles=tile, return_lse=True, **way)
    expected, expected_lse = reference(*inputs, mask)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    blind = (~mask).all(-1)
    assert (out[:, :, blind] == 0).all() and (lse[:, :, blind] == float("-inf")).all()
    for mine, other in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@each_way
def test_float32_equals_sdpa_to_a_millionth(way, causal):
    inputs = tensors(AttentionShape(700, 700, 64, heads=4, causal=causal), torch.float32)
    ours = attention(*inputs, causal=causal, tiles=Tiles(128, 64), **way)
    assert (ours - sdpa(*inputs, is_causal=causal)).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@each_way
def test_error_is_at_most_twice_that_of_a_half_precision_reference(way, causal, dtype):
    """The rule of flash-attn's own tests, forward and each gradient."""
    shape = AttentionShape(200, 260, 32, heads=4, kv_heads=2, causal=causal)
    inputs, mask = tensors(shape, dtype), seen(shape)
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact, half = reference(*exact_inputs, mask)[0], reference(*inputs, mask)[0]
    ours = attention(*inputs, causal=causal, tiles=Tiles(64, 32), **way)
    assert ours.dtype == dtype

    def error(got, expected):
        return (got.double() - expected).abs().max()

    assert error(ours, exact) <= 2 * error(half, exact)
    for mine, other, true in zip(
        gradients(ours, inputs), gradients(half, inputs), gradients(exact, exact_inputs), strict=True
    ):
        assert mine.dtype == dtype
        assert error(mine, true) <= 2 * error(other, true)


@each_way
def test_gradcheck(way):
    shape = AttentionShape(4, 5, 2, heads=2, kv_heads=1, causal=True)
    inputs = tensors(shape)
    extras = {"alibi_slopes": torch.tensor([0.3, 0.8]).double(), "dropout_p": 0.3, "seed": 3}
    if way.get("plan") != "standard":
        extras["softcap"] = 1.5

    def function(q, k, v):
        return attention(q, k, v, causal=True, window=(2, None), tiles=Tiles(2, 3), **extras, **way)

    assert torch.autograd.gradcheck(function, inputs)


# Options -----------------------------------------------------------------------------------------


@given(
    shape=attentions(30, shortest=1), tile=tiles(20), way=st.sampled_from(list(WAYS.values())),
    cap=st.sampled_from([0.0, 0.7, 20.0]), with_alibi=st.booleans(), dropout_p=st.sampled_from([0.0, 0.4]),
    scale=st.sampled_from([None, 0.3]),
)  # fmt: skip
@settings(max_examples=60)
def test_soft_cap_alibi_dropout_and_scale(shape, tile, way, cap, with_alibi, dropout_p, scale):
    if way.get("plan") == "standard":
        cap = 0.0
    inputs, mask = tensors(shape), seen(shape)
    slopes = torch.linspace(0.1, 1, shape.heads).double() if with_alibi else None
    heads = torch.arange(shape.batch * shape.heads)
    keep = keep_mask(11, 0, heads, range(shape.queries), range(shape.keys), dropout_p)
    keep = keep.view(shape.batch, shape.heads, shape.queries, shape.keys)
    expected, _ = reference(
        *inputs, mask, scale=scale, softcap=cap, alibi=slopes, keep=keep, dropout_p=dropout_p
    )
    ours = attention(
        *inputs, **options_of(shape), tiles=tile, softcap=cap, alibi_slopes=slopes, dropout_p=dropout_p,
        seed=11, scale=scale, **way,
    )  # fmt: skip
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(ours, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


def test_large_scores_do_not_overflow():
    inputs = tensors(AttentionShape(64, 64, 16), torch.float32, scale=60.0)
    ours = attention(*inputs, tiles=Tiles(16, 16))
    exact, _ = reference(*(t.double() for t in inputs), torch.ones(64, 64, dtype=torch.bool))
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-3)


# Random numbers ----------------------------------------------------------------------------------

KNOWN_ANSWERS = [  # Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_its_authors_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(word.item() for word in words) == expected


def test_dropout_drops_its_share_each_place_for_itself():
    keep = keep_mask(1, 0, torch.arange(4), range(250), range(250), 0.2).double()
    assert keep.mean() == pytest.approx(0.8, abs=4 * (0.16 / keep.numel()) ** 0.5)
    for axis in range(3):  # neighbors know nothing of each other
        n = keep.shape[axis] - 1
        pairs = torch.stack([keep.narrow(axis, 0, n).flatten(), keep.narrow(axis, 1, n).flatten()])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4 / pairs.shape[1] ** 0.5
    others = [(2, 0), (1 + 2**32, 0), (1, 1)]
    for seed, sequence in others:
        other = keep_mask(seed, sequence, torch.arange(4), range(250), range(250), 0.2).double()
        assert (other != keep).double().mean() == pytest.approx(0.32, abs=0.01)


def test_dropout_is_the_same_whatever_the_tiles_and_the_plan():
    inputs = tensors(AttentionShape(33, 45, 8, heads=4, kv_heads=2))
    same = {"dropout_p": 0.5, "seed": 2**40 + 3}
    expected = attention(*inputs, **same)
    for way in WAYS.values():
        for tile in (Tiles(7, 11), Tiles(16, 5)):
            torch.testing.assert_close(attention(*inputs, tiles=tile, **same, **way), expected)


# Bytes -------------------------------------------------------------------------------------------


@given(shape=attentions(30, shortest=1), tile=tiles(16), way=st.sampled_from(list(WAYS.values())))
@settings(max_examples=60)
def test_bytes_counted_are_the_plans(shape, tile, way):
    inputs, odometer = tensors(shape), Odometer()
    plan, splits = way.get("plan", "version_2"), way.get("splits", 1)
    out = attention(*inputs, **options_of(shape), tiles=tile, odometer=odometer, **way)
    expected = traffic(plan, shape, tile, splits)
    for name, elements in expected.tensors.items():
        counted = odometer.read[name], odometer.written[name], odometer.filled[name]
        assert counted == (8 * elements.read, 8 * elements.written, 8 * elements.filled), name
    assert odometer.total == expected.nbytes(8)
    gradients(out, inputs)
    backward = way.get("backward", BACKWARDS[plan])
    assert odometer.total == expected.nbytes(8) + traffic(backward, shape, tile).nbytes(8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_way
def test_bytes_of_half_precision_have_statistics_in_float32(way, dtype):
    """What is counted is what is priced, forward and backward."""
    shape, tile, odometer = AttentionShape(64, 64, 16, heads=2), Tiles(16, 16), Odometer()
    inputs = tensors(shape, dtype)
    plan, splits = way.get("plan", "version_2"), way.get("splits", 1)
    out, lse = attention(*inputs, tiles=tile, odometer=odometer, return_lse=True, **way)
    assert out.dtype == dtype and lse.dtype == torch.float32
    expected = traffic(plan, shape, tile, splits).nbytes(2, fp32=FP32_TENSORS)
    assert odometer.total == expected
    gradients(out, inputs)
    backward = traffic(way.get("backward", BACKWARDS[plan]), shape, tile).nbytes(2, fp32=FP32_TENSORS)
    assert odometer.total == expected + backward


def test_memory_grows_with_the_length_and_standards_with_its_square():
    def extra(length, **way):
        q, k, v = (t.detach() for t in tensors(AttentionShape(length, length, 16), torch.float32))
        return peak_extra_bytes(lambda: attention(q, k, v, **way))

    # The chip's own buffers are the same at each length: what grows is O and LSE
    small, large, larger = (extra(n) for n in (2048, 4096, 8192))
    grown = 4 * (16 + extra_elements("version_2", AttentionShape(1, 1, 16), Tiles(1, 1)))
    assert large - small == pytest.approx(2048 * grown, rel=0.2)
    assert larger - large == pytest.approx(4096 * grown, rel=0.2)
    standard = [extra(n, plan="standard", tiles=Tiles(16, 16)) for n in (512, 1024, 2048)]
    assert standard[2] / standard[1] == pytest.approx(4, rel=0.1)
    assert standard[1] >= 4 * extra_elements("standard", AttentionShape(1024, 1024, 16), Tiles(64, 64))


# Packed sequences and parts of keys --------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4), st.booleans(),
    st.sampled_from([0.0, 0.3]),
)  # fmt: skip
@settings(max_examples=25)
def test_packed_sequences_are_attended_each_by_itself(lengths, causal, dropout_p):
    generator = torch.Generator().manual_seed(0)
    cu_q, cu_k = ([0, *torch.tensor(column).cumsum(0).tolist()] for column in zip(*lengths, strict=True))
    q = torch.randn(cu_q[-1], 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(cu_k[-1], 2, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in "kv"
    )
    odometer, tile = Odometer(), Tiles(4, 8)
    same = {"causal": causal, "dropout_p": dropout_p, "seed": 9}
    out = attention_varlen(q, k, v, cu_q, torch.tensor(cu_k), tiles=tile, odometer=odometer, **same)
    expected = []
    for number, shape in enumerate(varlen(cu_q, cu_k, 8, 4, 2, causal=causal)):
        rows, columns = slice(*cu_q[number : number + 2]), slice(*cu_k[number : number + 2])
        keep = keep_mask(9, number, torch.arange(4), range(shape.queries), range(shape.keys), dropout_p)
        one = reference(
            *(t.transpose(0, 1)[None] for t in (q[rows], k[columns], v[columns])), seen(shape),
            keep=keep[None], dropout_p=dropout_p,
        )[0]  # fmt: skip
        expected.append(one[0].transpose(0, 1))
    expected = torch.cat(expected)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(out, (q, k, v)), gradients(expected, (q, k, v)), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=25)
def test_parts_combined_by_lse_are_the_whole(parts, seed):
    shape = AttentionShape(3, 20 * parts, 8, heads=2)
    q, k, v = (t.detach() for t in tensors(shape, seed=seed, scale=3.0))
    pieces = [
        attention(q, ks, vs, return_lse=True)
        for ks, vs in zip(k.chunk(parts, 2), v.chunk(parts, 2), strict=True)
    ]
    out, lse = combine_parts(torch.stack([o for o, _ in pieces]), torch.stack([s for _, s in pieces]))
    expected, expected_lse = attention(q, k, v, return_lse=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)


def test_parts_that_nobody_sees_combine_to_nothing():
    out, lse = combine_parts(torch.zeros(3, 2, 4), torch.full((3, 2), float("-inf")))
    assert (out == 0).all() and (lse == float("-inf")).all()


# Bad input ---------------------------------------------------------------------------------------


def call(q=(1, 4, 6, 8), k=(1, 2, 6, 8), v=None, dtype=None, **options):
    dtypes = dtype or (torch.float32,) * 3
    made = [torch.zeros(shape, dtype=d) for shape, d in zip((q, k, v or k), dtypes, strict=True)]
    return attention(*made, **options)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"q": (4, 6, 8)}, ValueError, r"q has shape \(4, 6, 8\): must be \(batch, heads, tokens, d\)"),
        ({"v": (1, 2, 5, 8)}, ValueError, r"v has shape \(1, 2, 5, 8\): must be k's, \(1, 2, 6, 8\)"),
        ({"k": (2, 2, 6, 8)}, ValueError, "must have q's batch 1 and head dimension 8"),
        ({"k": (1, 2, 6, 4)}, ValueError, "must have q's batch 1 and head dimension 8"),
        ({"k": (1, 3, 6, 8)}, ValueError, "kv_heads=3: must divide heads=4"),
        (
            {"dtype": (torch.float32, torch.float16, torch.float16)},
            TypeError,
            "k has dtype torch.float16: must be q's, torch.float32",
        ),
        ({"dtype": (torch.int64,) * 3}, TypeError, "q has dtype torch.int64: must be a floating-point dtype"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p=1.0: must be at least 0 and below 1"),
        ({"dropout_p": -0.1}, ValueError, "dropout_p=-0.1"),
        ({"dropout_p": "half"}, TypeError, "dropout_p='half': must be a number"),
        ({"seed": -1}, ValueError, "seed=-1: must be at least 0"),
        ({"seed": 2**64}, ValueError, r"seed=18446744073709551616: must be below 2\*\*64"),
        ({"scale": 0.0}, ValueError, "scale=0.0"),
        ({"softcap": -1.0}, ValueError, "softcap=-1.0"),
        ({"softcap": 1.0, "plan": "standard"}, ValueError, "softcap=1.0: must be 0 for standard"),
        ({"alibi_slopes": torch.zeros(2)}, ValueError, r"alibi_slopes has shape \(2,\): must be \(4,\)"),
        ({"window": (1, -1)}, ValueError, r"window\[1\]=-1: must be at least 0"),
        ({"plan": "version_3"}, ValueError, "plan='version_3': must be one of standard, version_1"),
        ({"splits": 2}, ValueError, "splits=2: must be 1 unless plan is 'split_kv'"),
        ({"backward": "version_1_backward"}, ValueError, "backward='version_1_backward': must be one of"),
        ({"tiles": (4, 4)}, TypeError, r"tiles=\(4, 4\): must be a Tiles"),
    ],
)
def test_bad_input_says_why(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)


def test_what_is_no_tensor_is_called_out():
    with pytest.raises(TypeError, match=r"q=\[1\]: must be a Tensor"):
        attention([1], torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize(
    "cu_q, cu_k, message",
    [
        ([0, 4, 2, 5], [0, 5], "cu_seqlens_q: 4 is followed by 2; must never fall"),
        ([0, 4], [0, 5], r"cu_seqlens_q ends with 4, rows have shape \(5, 2, 4\)"),
        ([0, 2, 5], [0, 5], "cu_seqlens_q has 2 sequences, cu_seqlens_k 1: must be as many"),
        ([1, 5], [0, 5], "cu_seqlens_q=.1, 5.: must be at least two offsets, the first of them 0"),
    ],
)
def test_offsets_that_do_not_fit_are_called_out(cu_q, cu_k, message):
    packed = torch.zeros(5, 2, 4)
    with pytest.raises(ValueError, match=message):
        attention_varlen(packed, packed, packed, cu_q, cu_k)


def test_no_second_derivative_and_none_through_lse():
    inputs = tensors(AttentionShape(4, 4, 2))
    out, lse = attention(*inputs, return_lse=True)
    assert not lse.requires_grad
    (gradient,) = torch.autograd.grad(out.sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|does not require grad"):
        gradient.sum().backward()
