"""Elementary functions on float32 vectors, without library calls.

LLVM turns a vector ``exp`` into sixteen calls of ``expf``; these stay in registers. Errors are a
few units in the last place (tests/schedules/test_epilogue.py bounds them).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from resq_tvm.schedules.code import Code, Expr, cast, constant, intrinsic, reinterpret

_F = "float32"

# Minimax rationals x·P(x²)/Q(x²) for float32, as used by Eigen (tanh) and XLA (erf).
_TANH_LIMIT = 7.90531110763549805
_TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_LIMIT = 4.0
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip

# Cephes' expf: e^r on |r| <= ln(2)/2.
_EXP_P = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
_LOG2E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# 1.5 · 2^23: adding it rounds a float to an integer (half to even) in the low mantissa bits.
MAGIC = 12582912.0


def fence(value: Expr, lanes: int) -> Expr:
    """Keep LLVM from contracting a product with the addition that reads it."""
    return intrinsic("llvm.arithmetic.fence", _F, lanes, value)


def clamp(value: Expr, low: float, high: float, lanes: int) -> Expr:
    """Clamp float32 lanes to ``[low, high]``."""
    return tirx.Max(tirx.Min(value, constant(high, _F, lanes)), constant(low, _F, lanes))


def _polynomial(code: Code, x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    value = constant(coefficients[0], _F, lanes)
    for c in coefficients[1:]:
        value = value * x + constant(c, _F, lanes)
    return code.bind(value)


def exp(code: Code, x: Expr, lanes: int) -> Expr:
    """e^x; saturates at the ends of the normal float32 range."""
    x = code.bind(clamp(x, -87.3365, 88.3762, lanes))
    # The outer fence keeps TVM's simplifier from cancelling MAGIC.
    scaled = fence(x * constant(_LOG2E, _F, lanes), lanes)
    shifted = code.bind(fence(scaled + constant(MAGIC, _F, lanes), lanes))
    n = code.bind(shifted - constant(MAGIC, _F, lanes))
    r = x - n * constant(_LN2_HIGH, _F, lanes)
    r = code.bind(r - n * constant(_LN2_LOW, _F, lanes))
    tail = _polynomial(code, r, _EXP_P, lanes)
    mantissa = tail * (r * r) + r + constant(1.0, _F, lanes)
    bits = reinterpret(shifted, "int32", lanes)
    # The shift drops everything of MAGIC's own bits but what 127 is added to.
    exponent = (bits + constant(127, "int32", lanes)) << constant(23, "int32", lanes)
    return code.bind(mantissa * reinterpret(exponent, _F, lanes))


def sigmoid(code: Code, x: Expr, lanes: int) -> Expr:
    """1 / (1 + e^-x)."""
    one = constant(1.0, _F, lanes)
    return tirx.Div(one, one + exp(code, constant(0.0, _F, lanes) - x, lanes))


def _rational(
    code: Code, x: Expr, limit: float, p: Sequence[float], q: Sequence[float], lanes: int
) -> Expr:
    x = code.bind(clamp(x, -limit, limit, lanes))
    square = code.bind(x * x)
    above = x * _polynomial(code, square, p, lanes)
    return tirx.Div(above, _polynomial(code, square, q, lanes))


def tanh(code: Code, x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent."""
    return _rational(code, x, _TANH_LIMIT, _TANH_P, _TANH_Q, lanes)


def erf(code: Code, x: Expr, lanes: int) -> Expr:
    """Gauss' error function."""
    return _rational(code, x, _ERF_LIMIT, _ERF_P, _ERF_Q, lanes)


def to_half(code: Code, x: Expr, lanes: int, native: bool) -> Expr:
    """Convert float32 to the bits of float16, half to even (``uint16`` lanes).

    ``native`` uses the CPU's conversion; otherwise integer arithmetic on the bits does it, for CPUs
    where LLVM would call a library that artifacts do not link.
    """
    if native:
        return reinterpret(cast(x, "float16", lanes), "uint16", lanes)
    # Bound values would be copied into their uses (see `Code.hold`), with all of x: six times here,
    # and again at the next conversion.
    bits = code.hold(reinterpret(x, "int32", lanes), "int32", lanes)

    def k(value: int) -> Expr:
        return constant(value, "int32", lanes)

    sign = (bits >> k(16)) & k(0x8000)
    magnitude = code.hold(bits & k(0x7FFFFFFF), "int32", lanes)
    odd = (magnitude >> k(13)) & k(1)
    normal = (magnitude + (k(0xFFF) + odd) - k(112 << 23)) >> k(13)
    # Adding 0.5 leaves a subnormal's mantissa, correctly rounded, in the low bits.
    scaled = reinterpret(magnitude, _F, lanes) + constant(0.5, _F, lanes)
    subnormal = reinterpret(scaled, "int32", lanes) - k(0x3F000000)
    value = tirx.Select(magnitude < k(113 << 23), subnormal, normal)
    value = tirx.Select(magnitude >= k(0x477FF000), k(0x7C00), value)
    return code.hold(cast(value | sign, "uint16", lanes), "uint16", lanes)


def from_half(code: Code, bits: Expr, lanes: int, native: bool) -> Expr:
    """Convert the bits of float16 (``uint16`` lanes) to float32."""
    if native:
        return cast(reinterpret(bits, "float16", lanes), _F, lanes)
    wide = code.hold(cast(bits, "int32", lanes), "int32", lanes)

    def k(value: int) -> Expr:
        return constant(value, "int32", lanes)

    # Scaling by 2^112 re-biases the exponent and normalises subnormals alike; infinity is apart.
    magnitude = (wide & k(0x7FFF)) << k(13)
    scaled = reinterpret(magnitude, _F, lanes) * constant(2.0**112, _F, lanes)
    finite = reinterpret(scaled, "int32", lanes)
    value = tirx.Select((wide & k(0x7C00)) == k(0x7C00), magnitude | k(0x7F800000), finite)
    result = value | ((wide & k(0x8000)) << k(16))
    return code.hold(reinterpret(result, _F, lanes), _F, lanes)
