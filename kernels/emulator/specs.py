"""The devices: sizes, clocks and bandwidths, each with its source. Data only.

Sources, all from the aws-neuron-sdk documentation at SDK 2.32 (NKI 0.6.0):
- clocks, SBUF and PSUM sizes: ``about-neuron/arch/neuron-hardware/neuron-core-v2|v3|v4.rst``;
- HBM bandwidth per chip divided by its cores: ``.../trainium|trainium2|trainium3.rst``;
- DMA engines and bytes/ns per engine, 1.3 us from semaphore to start: ``nki/deep-dives/nki-dma-bandwidth-guide.rst``;
- hwdge issue cost (about 600 ns a DMA instruction, two DGE blocks a core): ``nki/deep-dives/nki-dge.rst``.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTITIONS = 128
PSUM_BANKS = 8
PSUM_BANK_BYTES = 2048
PSUM_PARTITION_BYTES = PSUM_BANKS * PSUM_BANK_BYTES
STATIONARY_FREE_MAX = 128
MOVING_FREE_MAX = 512
BN_STATS_MAX = 512
FREE_DIMS_MAX = 4

# A DMA packet pays about what 256 bytes cost: fitted to the guide's words ("< 256 B: a small fraction of peak",
# ">= 2 KiB approaches peak", ">= 4 KiB saturates"); the guide prints no figures, so this is an assumption.
DMA_PACKET_OVERHEAD_BYTES = 256
DMA_FULL_RUN_BYTES = 4096
DMA_RINGS = 16
DMA_TRANSPOSE_EFFICIENCY_HBM = 0.9  # trainium2_arch.rst: up to 90 % of copy bandwidth HBM to SBUF
DMA_TRANSPOSE_EFFICIENCY_SBUF = 0.5  # trainium2_arch.rst: 50 % SBUF to SBUF


@dataclass(frozen=True)
class DeviceSpec:
    """One physical NeuronCore of a device.

    Attributes:
        name: ``trn1``, ``trn2`` or ``trn3``.
        generation: NeuronCore version, 2, 3 or 4.
        sbuf_partition_bytes: SBUF bytes in each of the 128 partitions.
        clock_ghz: clock of each compute engine in GHz (cycles per ns).
        dma_engines: DMA engines that serve one core.
        dma_engine_bytes_per_ns: effective bytes/ns of one DMA engine.
        hbm_bytes_per_ns: this core's share of the chip's HBM bandwidth.
        dma_latency_ns: time from semaphore to the first byte.
        hwdge_issue_ns: time a hardware DGE block needs for one DMA instruction.
    """

    name: str
    generation: int
    sbuf_partition_bytes: int
    clock_ghz: dict[str, float]
    dma_engine_bytes_per_ns: float
    hbm_bytes_per_ns: float
    dma_engines: int = 16
    dma_latency_ns: float = 1300.0
    hwdge_issue_ns: float = 600.0

    @property
    def dma_bytes_per_ns(self) -> float:
        """Bytes/ns that all DMA engines of a core reach together: the lower of their sum and the HBM share."""
        return min(self.dma_engines * self.dma_engine_bytes_per_ns, self.hbm_bytes_per_ns)


_KIB = 1024
DEVICES: dict[str, DeviceSpec] = {
    "trn1": DeviceSpec(
        name="trn1",
        generation=2,
        sbuf_partition_bytes=192 * _KIB,
        clock_ghz={"tensor": 2.8, "vector": 1.12, "scalar": 1.4, "gpsimd": 1.4},
        dma_engine_bytes_per_ns=17,
        hbm_bytes_per_ns=410,
    ),
    "trn2": DeviceSpec(
        name="trn2",
        generation=3,
        sbuf_partition_bytes=224 * _KIB,
        clock_ghz={"tensor": 2.4, "vector": 0.96, "scalar": 1.2, "gpsimd": 1.2},
        dma_engine_bytes_per_ns=23,
        hbm_bytes_per_ns=362,
    ),
    "trn3": DeviceSpec(
        name="trn3",
        generation=4,
        sbuf_partition_bytes=256 * _KIB,
        clock_ghz={"tensor": 2.4, "vector": 1.2, "scalar": 1.2, "gpsimd": 1.2},
        dma_engine_bytes_per_ns=33,
        hbm_bytes_per_ns=600,
    ),
}
