"""Run an ML Program of Core ML in torch, as its documentation defines the operators that this project's networks use.

Core ML itself runs only on Apple's devices. This reads the saved package: it checks the graph and the stored weights.
"""

import torch
from torch.nn import functional as F


def load_program(package):
    """Return the specification of a package, and its main function with the weights."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(package))
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    program = load(spec, spec.specificationVersion, file_weights_dir=str(weights))
    return spec, program.functions["main"]


def run_program(function, images):
    """Return the output of the function for images, float32 (1, C, H, W), in float32."""
    values = {"images": images}
    for op in function.operations:
        if op.op_type != "const":
            arguments = {name: read_argument(var, values) for name, var in op.inputs.items()}
            values[op.outputs[0].name] = OPERATORS[op.op_type](**arguments)
    return values[function.outputs[0].name]


def read_argument(var, values):
    if var is None or var.name in values:
        return None if var is None else values[var.name]
    value = var.val
    is_array = getattr(value, "ndim", 0) > 0
    return torch.from_numpy(value.copy()).float() if is_array and value.dtype.kind == "f" else value


def conv(x, weight, strides, dilations, groups, pad_type, pad=None, bias=None):
    assert pad_type in ("custom", "valid")
    if pad_type == "custom":
        top, bottom, left, right = map(int, pad)
        x = F.pad(x, (left, right, top, bottom))
    strides, dilations = [tuple(map(int, values)) for values in (strides, dilations)]
    return F.conv2d(x, weight, bias, strides, 0, dilations, int(groups))


def dequantize(quantized_data, zero_point, scale, axis):
    shape = [-1 if i == int(axis) else 1 for i in range(quantized_data.ndim)]
    offset, scale = [torch.as_tensor(value).float().view(shape) for value in (zero_point, scale)]
    return (torch.as_tensor(quantized_data).float() - offset) * scale


OPERATORS = {
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "constexpr_affine_dequantize": dequantize,
    "conv": conv,
    "mul": lambda x, y: x * y,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(map(int, axes)), keepdim=bool(keep_dims)),
    "reshape": lambda x, shape: x.reshape(tuple(map(int, shape))),
    "sigmoid_hard": lambda x, alpha, beta: (x * float(alpha) + float(beta)).clamp(0, 1),
    "thresholded_relu": lambda x, alpha: torch.where(x >= float(alpha), x, 0),
}
