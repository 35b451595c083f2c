"""Datasheets against arithmetic: what the units, clocks, buses and lanes of each chip add up to."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.hardware import DTYPE_BYTES, GPU, GPUS, LINKS, MIB, Cluster, Link

# Multiprocessors, clock in GHz (the highest that the vendor names), FLOP per clock and multiprocessor of
# the matrix units in FP16 (FP32 accumulation) and of the vector units in FP32, memory bus in bits and its
# rate in Gbit/s a pin: from architecture whitepapers and device properties, not from the peaks.
CHIPS = {
    "V100": (80, 1.53, 1024, 128, 4096, 1.754),
    "A100-40GB": (108, 1.41, 2048, 128, 5120, 2.430),
    "A100-80GB": (108, 1.41, 2048, 128, 5120, 3.186),
    "H100-SXM": (132, 1.98, 4096, 256, 5120, 5.238),
    "H200": (132, 1.98, 4096, 256, 6144, 6.402),
    "B200": (148, 1.965, 8192, 256, 7680, 7.992),
    "MI300X": (304, 2.1, 2048, 256, 8192, 5.2),
    "L4": (58, 2.04, 1024, 256, 192, 12.502),
    "L40S": (142, 2.52, 1024, 256, 384, 18.0),
    "RTX-4090": (128, 2.52, 512, 256, 384, 21.0),
}


def test_catalogues_hold_what_the_book_needs():
    assert set(GPUS) == set(CHIPS)
    assert set(LINKS) >= {"PCIe4", "PCIe5", "NVLink2", "NVLink3", "NVLink4", "NVLink5"}
    assert set(LINKS) >= {"InfiniBand-HDR", "InfiniBand-NDR", "RoCE-100", "RoCE-200", "RoCE-400"}
    for catalogue in (GPUS, LINKS):
        for name, entry in catalogue.items():
            assert entry.name == name
            assert "20" in entry.source or "RoCE" in entry.source or "InfiniBand" in entry.source
            assert hash(entry) == hash(pickle.loads(pickle.dumps(entry)))


@pytest.mark.parametrize("name", CHIPS)
def test_matrix_peak_is_what_the_units_can_do(name):
    sms, clock_ghz, flop_per_clock, *_ = CHIPS[name]
    gpu = GPUS[name]
    assert gpu.sms == sms
    # Tensor cores are rated below the highest clock; a sparse figure would be at 1.8 or more.
    assert 0.92 <= gpu.peak("fp16") / (sms * flop_per_clock * clock_ghz * 1e9) <= 1.005


@pytest.mark.parametrize("name", CHIPS)
def test_vector_peak_is_what_the_units_can_do(name):
    sms, clock_ghz, _, flop_per_clock, *_ = CHIPS[name]
    assert GPUS[name].peak("fp32") == pytest.approx(sms * flop_per_clock * clock_ghz * 1e9, rel=0.01)


@pytest.mark.parametrize("name", CHIPS)
def test_memory_bandwidth_is_what_the_bus_can_carry(name):
    *_, bits, gbits_per_pin = CHIPS[name]
    assert GPUS[name].memory_bandwidth == pytest.approx(bits * gbits_per_pin * 1e9 / 8, rel=0.025)


def test_ridge_points():
    # 312 TFLOP/s over 2.039 TB/s; 989.4 over 3.35.
    assert GPUS["A100-80GB"].ridge_point("bf16") == pytest.approx(153.0, abs=0.05)
    assert GPUS["H100-SXM"].ridge_point("bf16") == pytest.approx(295.3, abs=0.05)
    for gpu in GPUS.values():
        assert 100 < gpu.ridge_point("fp16") < 450


def test_trap_7_nvlink_is_one_direction():
    # generation: links, lanes a link, Gbit/s a lane, GB/s on the box
    for name, links, lanes, gbits, sold in (
        ("NVLink2", 6, 8, 25, 300),
        ("NVLink3", 12, 4, 50, 600),
        ("NVLink4", 18, 2, 100, 900),
        ("NVLink5", 18, 2, 200, 1800),
    ):
        assert LINKS[name].bandwidth == links * lanes * gbits * 1e9 / 8 == sold * 1e9 / 2
    # All-reduce bus bandwidth of nccl-tests without reduction in the switch stays below one direction.
    assert LINKS["NVLink3"].bandwidth > 235e9  # A100 node
    assert LINKS["NVLink4"].bandwidth > 366e9  # H100 node


def test_line_rates_of_other_links():
    for name, gbits in (("InfiniBand-HDR", 200), ("InfiniBand-NDR", 400)):
        assert LINKS[name].bandwidth == gbits * 1e9 / 8
    for gbits in (100, 200, 400):
        assert LINKS[f"RoCE-{gbits}"].bandwidth == gbits * 1e9 / 8
    for name, gigatransfers in (("PCIe4", 16), ("PCIe5", 32)):
        lanes, encoding = 16, 128 / 130
        assert LINKS[name].bandwidth == pytest.approx(lanes * gigatransfers * encoding * 1e9 / 8, rel=1e-3)


def test_latencies_are_ordered_as_the_paths_are_long():
    nvlink, pcie, net = (LINKS[n].latency_s for n in ("NVLink4", "PCIe5", "InfiniBand-NDR"))
    assert nvlink < pcie < net < 100e-6
    # Nothing beats light: 100 m of fiber to a switch and back to a GPU take 0.5 us.
    assert net > 100 / 2e8


def test_trap_8_peaks_are_dense():
    # FP16 TFLOP/s as datasheets print it "with sparsity"
    sparse = {
        "A100-40GB": 624,
        "A100-80GB": 624,
        "H100-SXM": 1979,
        "H200": 1979,
        "B200": 4500,
        "MI300X": 2614.9,
        "L4": 242,
        "L40S": 733,
        "RTX-4090": 330.4,
    }
    assert set(sparse) == set(GPUS) - {"V100"}  # no sparsity before Ampere
    for name, teraflops in sparse.items():
        assert GPUS[name].peak("fp16") == pytest.approx(teraflops * 1e12 / 2, rel=0.015)
    # Whole package, not one die: a B200 has two, an MI300X eight.
    assert GPUS["B200"].peak("bf16") == 2250e12
    assert GPUS["MI300X"].peak("bf16") == 1307.4e12
    # FP32 accumulation: GeForce runs FP16 at half the rate of the same chip as L40S.
    per_clock = {n: GPUS[n].peak("fp16") / GPUS[n].sms for n in ("RTX-4090", "L40S")}
    assert per_clock["L40S"] / per_clock["RTX-4090"] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_half_the_bits_never_cost_speed(gpu):
    order = [d for d in ("fp64", "fp32", "tf32", "fp16", "fp8", "fp4") if d in gpu.peak_flops]
    peaks = [gpu.peak(d) for d in order]
    assert peaks == sorted(peaks)
    if "bf16" in gpu.peak_flops:
        assert gpu.peak("bf16") == gpu.peak("fp16") == pytest.approx(2 * gpu.peak("tf32"), rel=0.025)
    if "fp8" in gpu.peak_flops:
        assert gpu.peak("fp8") == pytest.approx(2 * gpu.peak("fp16"), rel=0.015)
    if "int8" in gpu.peak_flops:  # GeForce slows down FP32 accumulation, which integers do not use
        assert gpu.peak("int8") == pytest.approx(
            (4 if gpu.name == "RTX-4090" else 2) * gpu.peak("fp16"), rel=0.015
        )
    if "fp4" in gpu.peak_flops:
        assert gpu.peak("fp4") == pytest.approx(2 * gpu.peak("fp8"))


def test_double_precision():
    # As a part of the FP32 vector peak: half, and where matrix units do it, all.
    for name, part in {"V100": 1 / 2, "A100-80GB": 1, "H100-SXM": 1, "B200": 1 / 2, "MI300X": 1}.items():
        assert GPUS[name].peak("fp64") == pytest.approx(part * GPUS[name].peak("fp32"), rel=0.02)


def test_sram_is_the_unified_cache_of_the_compute_capability():
    # CUDA C++ Programming Guide, compute capabilities: unified data cache and what of it can be shared
    # memory, in KiB; AMD's CDNA 3 whitepaper: local data share of a compute unit.
    table = {"7.0": (128, 96), "8.0": (192, 164), "8.9": (128, 100), "9.0": (256, 228), "10.0": (256, 228)}
    chips = {"V100": "7.0", "A100-40GB": "8.0", "A100-80GB": "8.0", "H100-SXM": "9.0", "H200": "9.0"}
    chips |= {"B200": "10.0", "L4": "8.9", "L40S": "8.9", "RTX-4090": "8.9"}
    for name, capability in chips.items():
        cache, shared = table[capability]
        assert GPUS[name].sram_bytes_per_sm == cache * 1024 > shared * 1024
    assert GPUS["MI300X"].sram_bytes_per_sm == 64 * 1024


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_energy_a_flop_is_physical(gpu):
    joules = gpu.tdp_watts / gpu.peak("fp16")
    assert 0.3e-12 < joules < 3e-12  # a few tenths to a few picojoules in 2017 to 2025


def test_trap_12_memory_is_what_the_driver_reports():
    label_gb = {
        "V100": 32,
        "A100-40GB": 40,
        "A100-80GB": 80,
        "H100-SXM": 80,
        "H200": 141,
        "B200": 180,
        "MI300X": 192,
        "L4": 24,
        "L40S": 48,
        "RTX-4090": 24,
    }
    for name, gb in label_gb.items():
        memory = GPUS[name].memory_bytes
        assert memory % MIB == 0
        assert gb * 10**9 < memory <= gb * 2**30, name  # neither of the two readings of the label
    assert GPUS["H100-SXM"].memory_bytes == 81559 * 2**20
    assert GPUS["H200"].memory_bytes == 143771 * 2**20


def test_the_gpu_in_this_machine_is_as_its_datasheet_says():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.cuda.get_device_properties(0)
    known = {"H200": "H200", "H100 80GB HBM3": "H100-SXM", "A100-SXM4-80GB": "A100-80GB", "B200": "B200"}
    known |= {"A100-SXM4-40GB": "A100-40GB", "NVIDIA L4": "L4", "L40S": "L40S", "RTX 4090": "RTX-4090"}
    name = next((known[k] for k in known if device.name.endswith(k)), None)
    if name is None:
        pytest.skip(f"{device.name} is not in the catalogue")
    assert device.multi_processor_count == GPUS[name].sms
    assert 0.97 <= device.total_memory / GPUS[name].memory_bytes <= 1
    assert device.shared_memory_per_multiprocessor <= GPUS[name].sram_bytes_per_sm


@given(st.floats(0, 1e15), st.floats(0, 1e15), st.sampled_from(list(LINKS.values())))
def test_transfer_time_is_alpha_beta(a, b, link):
    assert link.transfer_time(0) == link.latency_s
    whole, parts = link.transfer_time(a + b), link.transfer_time(a) + link.transfer_time(b)
    assert parts - whole == pytest.approx(link.latency_s, abs=1e-9 * max(1.0, whole))  # one latency saved
    assert link.transfer_time(a) <= whole


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_cluster_links_follow_the_nodes(gpus_per_node, nodes, data):
    cluster = Cluster(GPUS["A100-80GB"], gpus_per_node, nodes, LINKS["NVLink3"], LINKS["InfiniBand-HDR"])
    places = [(node, gpu) for node in range(nodes) for gpu in range(gpus_per_node)]
    assert cluster.world_size == len(places)
    a = data.draw(st.integers(0, cluster.world_size - 1))
    for b in range(cluster.world_size):
        if a == b:
            with pytest.raises(ValueError, match="two different ranks"):
                cluster.link(a, b)
        else:
            expected = cluster.intra_node if places[a][0] == places[b][0] else cluster.inter_node
            assert cluster.link(a, b) is cluster.link(b, a) is expected


A100 = GPUS["A100-80GB"]
NDR = LINKS["InfiniBand-NDR"]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("name", "", ValueError),
        ("name", 7, TypeError),
        ("source", " ", ValueError),
        ("memory_bytes", 80e9, TypeError),
        ("memory_bytes", -1, ValueError),
        ("memory_bandwidth", 0, ValueError),
        ("memory_bandwidth", float("inf"), ValueError),
        ("memory_bandwidth", "2 TB/s", TypeError),
        ("sms", True, TypeError),
        ("sram_bytes_per_sm", 0, ValueError),
        ("tdp_watts", float("nan"), ValueError),
        ("peak_flops", {}, ValueError),
        ("peak_flops", {"half": 1e12}, ValueError),
        ("peak_flops", {"bf16": 0}, ValueError),
        ("peak_flops", {"bf16": "312"}, TypeError),
    ],
)
def test_gpu_rejects(field, value, error):
    with pytest.raises(error, match=field):
        dataclasses.replace(A100, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("bandwidth", 0, ValueError),
        ("bandwidth", None, TypeError),
        ("latency_s", -1e-6, ValueError),
        ("latency_s", float("nan"), ValueError),
        ("source", "", ValueError),
    ],
)
def test_link_rejects(field, value, error):
    with pytest.raises(error, match=field):
        dataclasses.replace(NDR, **{field: value})


def test_a_link_may_be_ideal():
    assert Link("ideal", 0, 1e9, "thought experiment").transfer_time(1e9) == 1


@pytest.mark.parametrize(
    ("nbytes", "error"), [(-1, ValueError), (float("inf"), ValueError), ("1", TypeError), (True, TypeError)]
)
def test_transfer_time_rejects(nbytes, error):
    with pytest.raises(error, match="nbytes"):
        NDR.transfer_time(nbytes)


def test_unknown_dtypes_are_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"dtype='fp8': A100-80GB has fp64, .*int8"):
        A100.peak("fp8")
    with pytest.raises(ValueError, match="dtype='fp4'"):
        A100.ridge_point("fp4")
    assert all(set(gpu.peak_flops) <= set(DTYPE_BYTES) for gpu in GPUS.values())


def test_cluster_rejects():
    good = {"gpu": A100, "gpus_per_node": 8, "nodes": 2, "intra_node": NDR, "inter_node": NDR}
    for field, value, error in (
        ("gpu", "A100", TypeError),
        ("intra_node", 300e9, TypeError),
        ("inter_node", None, TypeError),
        ("nodes", 0, ValueError),
        ("gpus_per_node", 8.0, TypeError),
    ):
        with pytest.raises(error, match=field):
            Cluster(**good | {field: value})
    cluster = Cluster(**good)
    for a, b, error in ((0, 16, ValueError), (-1, 0, ValueError), (0.0, 1, TypeError), (True, 0, TypeError)):
        with pytest.raises(error, match="must be"):
            cluster.link(a, b)


def test_entries_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        A100.sms = 1
    assert isinstance(A100, GPU)
