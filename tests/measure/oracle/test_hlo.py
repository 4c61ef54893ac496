"""The HLO reader, on short texts: what XLA wrote (torch-xla 2.9.0 on CPU), abridged."""

import pytest

from fluxrewrite.errors import InputError
from fluxrewrite.fusion import Group
from fluxrewrite.measure.oracle.hlo import parse
from fluxrewrite.measure.oracle.hlo_kernels import fusion_of, node_of

# softmax(2 * kernel(gelu(x @ w.T).view(64, 2, 128).permute(1, 0, 2))); outputs: the dot, the view and the softmax.
SOFTMAX = """\
HloModule SyncTensorsGraph.40, is_scheduled=true, entry_computation_layout={(f32[256,128]{1,0}, f32[64,128]{1,0}, f32[])->(f32[64,256]{1,0}, f32[64,2,128]{2,1,0}, f32[2,64,128]{2,1,0})}

%MaxComputation.23 (x.24: f32[], y.25: f32[]) -> f32[] {
  %x.24 = f32[] parameter(0)
  %y.25 = f32[] parameter(1)
  ROOT %maximum.26 = f32[] maximum(%x.24, %y.25)
}

%fused_computation.2 (param_0.4: f32[2,64,128], param_1.6: f32[]) -> f32[2,64,128] {
  %param_0.4 = f32[2,64,128]{2,1,0} parameter(0)
  %param_1.6 = f32[] parameter(1)
  %broadcast.3 = f32[2,64,128]{2,1,0} broadcast(%param_1.6), dimensions={}, metadata={op_type="aten__mul" op_name="shared.1/aten__mul"}
  ROOT %multiply.1 = f32[2,64,128]{2,1,0} multiply(%param_0.4, %broadcast.3), metadata={op_type="aten__mul" op_name="mul.6/aten__mul.1/aten__mul"}
}

%fused_computation.3 (param_0.7: f32[64,256]) -> f32[2,64,128] {
  %param_0.7 = f32[64,256]{1,0} parameter(0)
  %bitcast.1 = f32[64,2,128]{2,1,0} bitcast(%param_0.7), metadata={op_type="aten__gelu" op_name="gelu.2/aten__gelu"}
  %transpose.0 = f32[2,64,128]{2,0,1} transpose(%bitcast.1), dimensions={1,0,2}, metadata={op_type="aten__permute" op_name="perm.4/aten__permute"}
  ROOT %copy.2 = f32[2,64,128]{2,1,0} copy(%transpose.0), metadata={op_type="aten__permute" op_name="perm.4/aten__permute"}
}

ENTRY %SyncTensorsGraph.40 (p0.1: f32[256,128], p1.3: f32[64,128], p2.19: f32[]) -> (f32[64,256], f32[64,2,128], f32[2,64,128]) {
  %p0.1 = f32[256,128]{1,0} parameter(0), metadata={op_type="xla__device_data" op_name="linear.1/xla__device_data"}
  %p1.3 = f32[64,128]{1,0} parameter(1), metadata={op_type="xla__device_data" op_name="linear.1/xla__device_data"}
  %p2.19 = f32[] parameter(2), metadata={op_type="xla__device_data" op_name="mul.6/xla__device_data"}
  %constant.22 = f32[] constant(-inf), metadata={op_type="aten__softmax" op_name="soft.7/aten__softmax"}
  %dot.4 = f32[64,256]{1,0} dot(%p1.3, %p0.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_type="aten__mm" op_name="linear.1/aten__mm"}
  %bitcast = f32[64,2,128]{2,1,0} bitcast(%dot.4), metadata={op_type="aten__gelu" op_name="gelu.2/aten__gelu"}
  %transpose_copy_fusion = f32[2,64,128]{2,1,0} fusion(%dot.4), kind=kLoop, calls=%fused_computation.3, metadata={op_type="aten__permute" op_name="perm.4/aten__permute"}
  %copy.3 = f32[64,2,128]{2,1,0} copy(%bitcast)
  %custom-call.18 = f32[2,64,128]{2,1,0} custom-call(%transpose_copy_fusion), custom_call_target="AwsNeuronCustomNativeKernel", metadata={op_type="xla__custom_call" op_name="kern.5/xla__custom_call"}
  %broadcast_multiply_fusion = f32[2,64,128]{2,1,0} fusion(%custom-call.18, %p2.19), kind=kLoop, calls=%fused_computation.2, metadata={op_type="aten__mul" op_name="mul.6/aten__mul"}
  %reduce-window = f32[2,64,4]{2,1,0} reduce-window(%broadcast_multiply_fusion, %constant.22), window={size=1x1x32 stride=1x1x32}, to_apply=%MaxComputation.23
  %reduce.27 = f32[2,64]{1,0} reduce(%reduce-window, %constant.22), dimensions={2}, to_apply=%MaxComputation.23, metadata={op_type="aten__softmax" op_name="soft.7/aten__softmax"}
  ROOT %tuple.1 = (f32[64,256]{1,0}, f32[64,2,128]{2,1,0}, f32[2,64]{1,0}) tuple(%dot.4, %copy.3, /*index=2*/%reduce.27)
}
"""  # noqa: E501

# Written by hand in XLA's forms: a kernel of two results, a slice outlined for two threads, a fusion of two results.
SEVERAL = """\
HloModule SyncTensorsGraph.9, is_scheduled=true

%parallel_slice (p: f32[1024,128]) -> f32[768,128] {
  %p = f32[1024,128]{1,0} parameter(0)
  ROOT %slice.1 = f32[768,128]{1,0} slice(%p), slice={[256:1024], [0:128]}, metadata={op_type="aten__split" op_name="getitem_1.3/aten__split"}
}

%fused_computation (param_0: bf16[8,16], param_1: bf16[128], param_2: bf16[4,16]) -> (bf16[8,16], pred[8,16]) {
  %param_0 = bf16[8,16]{1,0} parameter(0)
  %param_1 = bf16[128]{0} parameter(1)
  %bitcast.1 = bf16[8,16]{1,0} bitcast(%param_1)
  %param_2 = bf16[4,16]{1,0} parameter(2)
  %slice.2 = bf16[1,16]{1,0} slice(%param_2), slice={[0:1], [0:16]}, metadata={op_name="add.1/aten__slice"}
  %add.1 = bf16[8,16]{1,0} add(%param_0, %slice.2), metadata={op_name="add.1/aten__add"}
  %compare.1 = pred[8,16]{1,0} compare(%param_0, %bitcast.1), direction=EQ, metadata={op_name="eq.2/aten__eq"}
  ROOT %tuple.2 = (bf16[8,16]{1,0}, pred[8,16]{1,0}) tuple(%add.1, %compare.1)
}

ENTRY %SyncTensorsGraph.9 (w: f32[1024,128], x: bf16[8,16]) -> (f32[768,128], bf16[8,16], pred[8,16]) {
  %w = f32[1024,128]{1,0} parameter(0)
  %x = bf16[8,16]{1,0} parameter(1)
  %call = f32[768,128]{1,0} call(%w), to_apply=%parallel_slice, backend_config={"outer_dimension_partitions":["2"]}
  %custom-call.4 = (bf16[8,16]{1,0}, bf16[4,16]{1,0}) custom-call(%x, %x), custom_call_target="AwsNeuronCustomNativeKernel", backend_config="fluxrewrite.qkv(x)", metadata={op_name="qkv_default.4/xla__custom_call"}
  %get-tuple-element.5 = bf16[8,16]{1,0} get-tuple-element(%custom-call.4), index=0
  %get-tuple-element.6 = bf16[4,16]{1,0} get-tuple-element(%custom-call.4), index=1
  %bitcast.7 = bf16[128]{0} bitcast(%get-tuple-element.5)
  %add_fusion = (bf16[8,16]{1,0}, pred[8,16]{1,0}) fusion(%get-tuple-element.5, %bitcast.7, %get-tuple-element.6), kind=kLoop, calls=%fused_computation
  ROOT %tuple.9 = (f32[768,128]{1,0}, bf16[8,16]{1,0}) tuple(%call, %get-tuple-element.5)
}
"""  # noqa: E501


def test_kernels_of_a_small_program():
    mib = 64 * 256 * 4
    assert fusion_of(parse(SOFTMAX), "xla").groups == (
        Group("dot.4", "library", frozenset({"linear"}), 256 * 128 * 4 + 64 * 128 * 4, mib),
        Group("transpose_copy_fusion", "copy", frozenset({"perm"}), mib, mib),
        Group("copy.3", "copy", frozenset(), mib, mib),
        Group("custom-call.18", "opaque", frozenset({"kern"}), mib, mib),
        Group("broadcast_multiply_fusion", "fused", frozenset({"mul"}), mib + 4, mib),
        Group("reduce-window", "fused", frozenset({"soft"}), mib + 4, 2 * 64 * 4 * 4),
        Group("reduce.27", "fused", frozenset({"soft"}), 2 * 64 * 4 * 4 + 4, 2 * 64 * 4),
    )


def test_tuples_calls_and_bitcasts_are_seen_through():
    call, kernel, fused = fusion_of(parse(SEVERAL), "xla").groups
    assert call == Group("call", "copy", frozenset({"getitem_1"}), 1024 * 128 * 4, 768 * 128 * 4)
    assert kernel == Group("custom-call.4", "opaque", frozenset({"qkv_default"}), 8 * 16 * 2, 8 * 16 * 2 + 4 * 16 * 2)
    assert (fused.nodes, fused.reads) == ({"add", "eq"}, 8 * 16 * 2 + 4 * 16 * 2)
    assert fused.writes == 8 * 16 * 2 + 8 * 16


def test_touched_bytes_of_a_sliced_operand():
    call, kernel, fused = fusion_of(parse(SEVERAL), "xla", touched=True).groups
    assert (call.reads, call.writes) == (768 * 128 * 4, 768 * 128 * 4)
    assert kernel == fusion_of(parse(SEVERAL), "xla").groups[1]
    assert fused.reads == 8 * 16 * 2 + 1 * 16 * 2


def test_a_fusion_lists_its_instructions():
    fusion = fusion_of(parse(SEVERAL), "xla")
    assert fusion.fused("add", "eq")
    assert not fusion.fused("qkv_default", "add")


@pytest.mark.parametrize(
    ("op_name", "node"),
    [("add_1.17/aten__add", "add_1"), ("l_x_.2/aten__mul.3/aten__mul", "l_x_"), ("aten__mul", None), ("", None)],
)
def test_node_of(op_name, node):
    assert node_of(op_name) == node


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an HLO module"),
        ("module @main {}", "not an HLO module"),
        (SOFTMAX[: SOFTMAX.index("ROOT %tuple.1")], "no complete ENTRY"),
        (SOFTMAX.replace("f32[64,2,128]{2,1,0} copy", "f33[64,2,128]{2,1,0} copy"), "element type 'f33'"),
        (SOFTMAX.replace("copy(%bitcast)", "copy(%bitcast"), "without its closing bracket"),
        (SOFTMAX.replace("copy(%bitcast)", "?"), "has no opcode"),
    ],
)
def test_text_that_is_no_whole_module(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


def test_sizes_of_small_types():
    text = "HloModule m\n\nENTRY %e (x: f32[]) -> f32[] {\n  %x = (s4[3], pred[5], f64[], token[]) parameter(0)\n}\n"
    assert parse(text).entry.instructions[0].sizes == (2, 5, 8, 0)
