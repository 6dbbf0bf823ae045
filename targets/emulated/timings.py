"""What instructions cost on each core: latencies and ports.

Latencies and throughputs of Cortex-A53, Cortex-A72 and Cortex-A76 are those that the project
``insn_bench_aarch64`` measured on a Raspberry Pi 3, an NXP LX2160A and an AWS Graviton2 (Neoverse
N1, the server variant of Cortex-A76). Those of Cortex-A55 and Cortex-A710 are derived from them by
LLVM's models of these cores. docs/arm-emulation.md tells what is left out and what is in doubt.

A table has one row per kind of instruction (`resq_tvm.targets.emulated.instructions`): latency,
ports of 128-bit vectors, and ports of 64-bit vectors and scalars where they differ. ``4>1`` is a
latency of 4 cycles, but 1 from one accumulation to the next of the same kind. ``F0:2`` takes port
F0 for 2 cycles; ``N*2`` takes two ports whose names begin with N; ``+`` joins.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """So many of some ports, each for so many cycles; ``ports`` are indices into a core's."""

    ports: tuple[int, ...]
    cycles: int = 1
    count: int = 1


@dataclass(frozen=True)
class Timing:
    """What an instruction costs.

    Attributes
    ----------
    latency : int
        Cycles from its start to the start of one that needs its result.
    chain : int
        The same between accumulations of one kind; 0: no forwarding.
    wide, narrow : tuple of Use
        Ports with 128-bit vectors, and with 64-bit vectors and scalars.
    """

    latency: int
    chain: int
    wide: tuple[Use, ...]
    narrow: tuple[Use, ...]


def _uses(text: str, ports: tuple[str, ...]) -> tuple[Use, ...]:
    uses = []
    for part in text.split("+") if text != "-" else ():
        name, _, cycles = part.partition(":")
        name, _, count = name.partition("*")
        members = tuple(i for i, port in enumerate(ports) if port.startswith(name))
        assert members, part
        uses.append(Use(members, int(cycles or 1), int(count or 1)))
    return tuple(uses)


def _table(ports: tuple[str, ...], text: str) -> dict[str, Timing]:
    timings = {}
    for line in text.strip().splitlines():
        kind, latency, wide, *narrow = line.split()
        cycles, _, chain = latency.partition(">")
        timings[kind] = Timing(
            int(cycles), int(chain or 0), _uses(wide, ports), _uses((narrow or [wide])[0], ports)
        )
    return timings


# A: integer, M: multiply and divide, L: load and store, B: branches, N: 64-bit vector pipes (a
# 128-bit vector takes both).
_A53_PORTS = ("A0", "A1", "M", "L", "B", "N0", "N1")
_A53_TABLE = """
alu                 1     A
shifted             2     A
shift               2     A
insert              2     A
multiply.w          3     M
multiply.x          4     M:2
multiply.high       6     M:4
divide              8     M:8
branch              1     B
nop                 1     -
fence               1     L
system              4     A
atomic              8     L:4
prefetch            1     L
load.x              3     L
load.w              4     L
load.d              4     L
load.q              5     L:2
loadpair.x          4     L:2
loadpair.w          4     L:3
loadpair.d          5     L:2
loadpair.q          6     L:4
load.1              5     L:2      L
load.2              7     L:4      L:2
load.3              9     L:6      L:3
load.4              11    L:8      L:4
load.by2            7     L:4      L:2
load.by3            10    L:7      L:4
load.by4            12    L:9      L:5
load.all            4     L
load.lane           4     L
store.x             1     L
store.w             1     L
store.d             1     L
store.q             1     L
storepair.x         1     L
storepair.w         1     L
storepair.d         1     L
storepair.q         1     L:2
store.1             1     L
store.2             1     L:2      L
store.3             1     L:3      L:2
store.4             1     L:4      L:2
store.by2           1     L:2
store.by3           1     L:4
store.by4           1     L:5
store.lane          1     L
logic               1     N*2      N
add                 2     N*2      N
addl                3     N*2      N
qadd                3     N*2      N
abd                 3     N*2      N
addlp               3     N*2      N
reduce              3     N*2      N
reduce.4            3     N*2      N
mul                 4     N*2      N
mull                4     N*2      N
mla                 4>1   N*2      N
mlal                4>1   N*2      N
qmla                4     N*2      N
dot                 4>1   N*2      N
adalp               4>1   N*2      N
aba                 4>2   N*2:2    N:2
shift.v             2     N*2      N
shiftv              2     N*2      N
rshift              3     N*2      N
sra                 3     N*2      N
narrow              2     N
qnarrow             4     N
count               2     N*2      N
select              2     N*2      N
constant            1     N*2      N
permute             2     N*2      N
table.1             2     N*2      N
table.2             3     N*2:2    N:2
table.3             4     N*2:3    N:3
table.4             5     N*2:4    N:4
from.scalar         3     N
to.scalar           3     N
convert.to.scalar   4     N
convert.from.scalar 6     N
fadd                4     N*2      N
faddp               4     N*2      N
fmax                4     N*2      N
freduce             4     N*2      N
freduce.4           4     N*2      N
fmul                4     N*2      N
fma                 8>4   N*2      N
fstep               8     N*2      N
frecp               4     N*2      N
fconvert            4     N*2      N
fcompare            1     N
fdiv                13    N*2:10   N:10
fsqrt               12    N*2:9    N:9
"""

# The same pipes with dot products; multiply-add in 4 cycles.
_A55_TABLE = _A53_TABLE.replace("fma                 8>4", "fma                 4>4").replace(
    "load.w              4", "load.w              3"
)

# Timings of single instructions leave open what goes together. By loops that were timed on these
# cores, 128-bit vector loads (on Cortex-A53 64-bit ones, too) start alone; and sadalp took the
# pipes of a Cortex-A53 for two cycles.
_CAUTIOUS_LOADS = {
    "load.q              5     L:2": "load.q              5     L:2+N*2:2",
    "loadpair.q          6     L:4": "loadpair.q          6     L:4+N*2:4",
    "load.1              5     L:2      L": "load.1              5     L:2+N*2:2 L",
    "load.2              7     L:4      L:2": "load.2              7     L:4+N*2:4 L:2",
    "load.3              9     L:6      L:3": "load.3              9     L:6+N*2:6 L:3",
    "load.4              11    L:8      L:4": "load.4              11    L:8+N*2:8 L:4",
}
_CAUTIOUS_A53 = {
    **_CAUTIOUS_LOADS,
    "load.d              4     L": "load.d              4     L+N*2",
    "loadpair.d          5     L:2": "loadpair.d          5     L:2+N*2:2",
    "load.all            4     L": "load.all            4     L+N*2",
    "load.lane           4     L": "load.lane           4     L+N*2",
    "adalp               4>1   N*2      N": "adalp               4>2   N*2:2    N:2",
}


def _changed(table: str, rows: dict[str, str]) -> str:
    for old, new in rows.items():
        assert f"\n{old}\n" in table, old
        table = table.replace(f"\n{old}\n", f"\n{new}\n")
    return table


# A: integer, M: multi-cycle integer, B, L: load, S: store, F: 128-bit vector pipes. Three plain
# 128-bit operations start in two cycles, which the ports Q stand for.
_A72_PORTS = ("A0", "A1", "M", "B", "L", "S", "F0", "F1", "Q0", "Q1", "Q2")
_A72_TABLE = """
alu                 1     A
shifted             2     M
shift               1     A
insert              2     M
multiply.w          3     M
multiply.x          5     M:3
multiply.high       6     M:4
divide              12    M:12
branch              1     B
nop                 1     -
fence               1     S
system              4     M
atomic              8     L:2+S:2
prefetch            1     L
load.x              4     L
load.w              4     L
load.d              5     L
load.q              5     L
loadpair.x          5     L
loadpair.w          5     L
loadpair.d          5     L
loadpair.q          6     L:2
load.1              5     L
load.2              6     L:2
load.3              7     L:3
load.4              8     L:4
load.by2            9     L:2+F*2
load.by3            10    L:3+F*4
load.by4            11    L:4+F*5
load.all            8     L+F
load.lane           8     L+F
store.x             1     S
store.w             1     S
store.d             1     S
store.q             1     S:2
storepair.x         1     S:2
storepair.w         1     S
storepair.d         1     S:2
storepair.q         1     S:4
store.1             1     S:2      S
store.2             1     S:4      S:2
store.3             1     S:8      S:4
store.4             1     S:12     S:6
store.by2           1     S:4      S:2
store.by3           1     S:8      S:4
store.by4           1     S:12     S:6
store.lane          1     S
logic               3     F+Q:2    F
add                 3     F+Q:2    F
addl                3     F+Q:2    F
qadd                3     F+Q:2    F
abd                 3     F1
addlp               3     F1
reduce              6     F1:2
reduce.4            3     F1
mul                 4     F0:2     F0
mull                4     F0
mla                 4>2   F0:2     F0
mlal                4>1   F0
qmla                4>2   F0
dot                 4>1   F0:2     F0
adalp               4>1   F1
aba                 4>2   F1:2     F1
shift.v             3     F1
shiftv              3     F1:2     F1
rshift              4     F1
sra                 4>1   F1
narrow              3     F
qnarrow             4     F1
count               3     F:2+Q:3   F
select              3     F:2+Q:3   F
constant            3     F+Q:2    F
permute             3     F+Q:2    F
table.1             6     F*3      F
table.2             9     F*6      F*3
table.3             12    F*9      F*5
table.4             15    F*14     F*7
from.scalar         8     L+F
to.scalar           5     L
convert.to.scalar   8     F0+L
convert.from.scalar 8     L+F0
fadd                4     F:2+Q:3   F
faddp               7     F*3      F
fmax                3     F+Q:2    F
freduce             6     F*2
freduce.4           6     F*2
fmul                4     F:2+Q:3   F
fma                 7>3   F:2+Q:3   F
fstep               7     F:2+Q:3   F
frecp               3     F0:2     F0
fconvert            3     F0:2     F0
fcompare            3     F1
fdiv                13    F0:20    F0:9
fsqrt               17    F0:30    F0:8
"""

# L: loads and addresses of stores, S: data of 128-bit stores, V: 128-bit vector pipes (only V0
# multiplies integers, only V1 shifts).
_A76_PORTS = ("A0", "A1", "AM", "B", "L0", "L1", "S", "V0", "V1")
_A76_TABLE = """
alu                 1     A
shifted             2     AM
shift               1     A
insert              2     AM
multiply.w          2     AM
multiply.x          4     AM:3
multiply.high       5     AM:4
divide              12    AM:12
branch              1     B
nop                 1     -
fence               1     L
system              4     AM
atomic              8     L:2
prefetch            1     L
load.x              4     L
load.w              4     L
load.d              5     L
load.q              5     L
loadpair.x          4     L*2
loadpair.w          4     L:2
loadpair.d          5     L*2
loadpair.q          7     L*2
load.1              5     L
load.2              5     L*2
load.3              6     L*3
load.4              6     L*4
load.by2            8     L*2+V*2
load.by3            9     L*3+V*3
load.by4            11    L*4+V*4
load.all            7     L+V
load.lane           7     L+V
store.x             1     L
store.w             1     L
store.d             1     L+V
store.q             1     L+S+V
storepair.x         1     L*2
storepair.w         1     L
storepair.d         1     L+S+V
storepair.q         1     L*2+S*2+V*2
store.1             1     L+S+V    L+V
store.2             1     L*2+S*2+V*2 L+S+V
store.3             1     L*3+S*3+V*3 L*2+S*2+V*2
store.4             1     L*4+S*4+V*4 L*2+S*2+V*2
store.by2           1     L*2+S*2+V*2
store.by3           1     L*3+S*3+V*3
store.by4           1     L*4+S*4+V*4
store.lane          1     L+V
logic               2     V
add                 2     V
addl                2     V
qadd                2     V
abd                 2     V
addlp               2     V
reduce              6     V1:2
reduce.4            3     V1
mul                 5     V0:2     V0
mull                4     V0
mla                 5>2   V0:2     V0
mlal                4>1   V0
qmla                4     V0
dot                 3>1   V
adalp               4>1   V1
aba                 4>1   V1
shift.v             2     V1
shiftv              2     V1
rshift              4     V1
sra                 4>1   V1
narrow              2     V
qnarrow             4     V1
count               2     V
select              2     V
constant            1     V
permute             2     V
table.1             2     V
table.2             2     V
table.3             4     V*2
table.4             4     V*3
from.scalar         4     AM
to.scalar           3     V1
convert.to.scalar   5     V0+V1
convert.from.scalar 6     AM+V0
fadd                2     V
faddp               3     V
fmax                2     V
freduce             6     V*2
freduce.4           6     V*2
fmul                3     V
fma                 4>2   V
fstep               4     V
frecp               4     V0:2     V0
fconvert            4     V0:2     V0
fcompare            2     V0
fdiv                10    V0:9     V0:5
fsqrt               9     V0:7     V0:2
"""

# As Cortex-A76, with a third load pipe, a fourth integer pipe, more multiplications, and matrix
# products.
_A710_PORTS = ("A0", "A1", "AM0", "AM1", "B", "L0", "L1", "L2", "S0", "S1", "V0", "V1")
_A710_TABLE = (
    _A76_TABLE.replace("mul                 5     V0:2     V0", "mul                 4     V0")
    .replace("mla                 5>2   V0:2     V0", "mla                 4>1   V0")
    .replace("mull                4     V0", "mull                3     V")
    .replace("store.x             1     L ", "store.x             1     S ")
    .replace("loadpair.x          4     L*2", "loadpair.x          4     L  ")
)

# The ports of each core and of each variant.
PORTS = {
    "cortex-a53": _A53_PORTS,
    "cortex-a53-cautious": _A53_PORTS,
    "cortex-a55": _A53_PORTS,
    "cortex-a55-cautious": _A53_PORTS,
    "cortex-a72": _A72_PORTS,
    "cortex-a76": _A76_PORTS,
    "cortex-a710": _A710_PORTS,
}
_TABLES = {
    "cortex-a53": _A53_TABLE,
    "cortex-a53-cautious": _changed(_A53_TABLE, _CAUTIOUS_A53),
    "cortex-a55": _A55_TABLE,
    "cortex-a55-cautious": _changed(_A55_TABLE, _CAUTIOUS_LOADS),
    "cortex-a72": _A72_TABLE,
    "cortex-a76": _A76_TABLE,
    "cortex-a710": _A710_TABLE,
}
TIMINGS = {name: _table(PORTS[name], text) for name, text in _TABLES.items()}
