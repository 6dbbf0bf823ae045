"""Programs on the emulated board: regions, functions, caches, and what can go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from resq_tvm.errors import TargetError
from resq_tvm.targets import emulated
from resq_tvm.targets.boardkit import cross_compile
from resq_tvm.targets.emulated.board import EmulatedBoard, Execution
from resq_tvm.targets.emulated.cores import CORES
from tests.tools import need

pytestmark = pytest.mark.aarch64

SOURCE = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include "region.h"

static char memory[4 << 20];

extern "C" {
// Five instructions in each of n rounds, and a return.
__attribute__((naked, noipa)) void count_down(long n) {
  __asm__("1: add x1, x1, #1\n add x2, x2, #1\n nop\n subs x0, x0, #1\n b.ne 1b\n ret");
}
__attribute__((noinline)) void outer() {
  count_down(50);
  count_down(50);
  __asm__ volatile("nop");
}
__attribute__((noinline)) void dot() {
  __asm__(".arch armv8.2-a+dotprod\n sdot v0.4s, v1.16b, v2.16b" ::: "v0");
}
__attribute__((noinline)) long sum(long bytes) {
  long total = 0;
  for (long i = 0; i < bytes; i += 64) total += ((volatile char*)memory)[i];
  return total;
}
}

int main(int argc, char** argv) {
  char line[64] = "";
  if (argc > 1 && !strcmp(argv[1], "fail")) {
    fputs("starting\nno such frame\n", stderr);
    return 3;
  }
  if (argc > 1 && !strcmp(argv[1], "abort")) abort();
  if (argc > 1 && !strcmp(argv[1], "hang")) for (;;) __asm__ volatile("nop");
  if (argc > 1 && !strcmp(argv[1], "dot")) dot();
  if (argc > 1 && !strcmp(argv[1], "sum")) {
    memset(memory, 1, sizeof memory);
    RESQ_REGION_BEGIN(0);
    long small = sum(4096);
    RESQ_REGION_END();
    RESQ_REGION_BEGIN(1);
    small += sum(4096);
    RESQ_REGION_END();
    RESQ_REGION_BEGIN(2);
    long large = sum(2 << 20);
    RESQ_REGION_END();
    printf("%ld %ld\n", small, large);
    return 0;
  }
  if (argc > 1 && !strcmp(argv[1], "threads")) {
    RESQ_REGION_BEGIN(0);
    std::thread other([] { count_down(1000); });
    other.join();
    RESQ_REGION_END();
    return 0;
  }
  if (argc > 1 && !strcmp(argv[1], "detour")) {
    for (int i = 0; i < 9; i++) fprintf(stderr, "%d %g\n", i, i * 0.1);
    outer();
  }
  fgets(line, sizeof line, stdin);
  for (int i = 0; i < 3; i++) {
    RESQ_REGION_BEGIN(1);
    count_down(1000);
    RESQ_REGION_END();
  }
  count_down(5000);
  RESQ_REGION_BEGIN(7);
  count_down(100);
  RESQ_REGION_END();
  RESQ_REGION_BEGIN(9);
  outer();
  RESQ_REGION_END();
  printf("read %s in %s\n", line, getenv("PLACE") ? getenv("PLACE") : "?");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("qemu-aarch64", "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "cc")
    folder = tmp_path_factory.mktemp("board")
    (folder / "program.cc").write_text(SOURCE)
    header = Path(emulated.__file__).parent
    return cross_compile(
        [folder / "program.cc"], folder / "program", None, flags=[f"-I{header}", "-pthread"]
    )


def run(program: Path, *arguments: str, core: str = "cortex-a53", cache: bool = False) -> Execution:
    board = EmulatedBoard(core, cache_model=cache)
    return board.execute(
        [program, *arguments], stdin=b"one line", environment={"PLACE": "test"}, timeout_s=60
    )


@pytest.mark.parametrize("core", CORES)
def test_regions_functions_and_streams(program: Path, core: str) -> None:
    done = run(program, core=core)
    assert done.stdout == b"read one line in test\n"
    assert sorted(done.regions) == [1, 7, 9]
    many, few = done.regions[1], done.regions[7]
    assert (many.entries, few.entries) == (3, 1)
    for region, rounds, entries in ((many, 3000, 3), (few, 100, 1)):
        count = next(f for f in region.functions if f.name == "count_down")
        assert count.library == "program"
        assert count.instructions == 5 * rounds + entries
        assert region.cycles_in("program")["count_down"] == count.cycles
        # Two ALUs and pairs in order; at least the dependence of each counter.
        assert rounds <= count.bound <= count.cycles <= 4 * rounds + 200 * entries
        assert region.cycles == sum(f.cycles for f in region.functions)
        assert region.instructions < 5 * rounds + 100 * entries
    assert done.seconds(7) == few.cycles / CORES[core].clock_hz
    assert [region for region, _ in done.timeline] == [1, 1, 1, 7, 9]
    for number, region in done.regions.items():
        assert sum(spent for n, spent in done.timeline if n == number) == region.cycles


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a72"])
def test_the_same_to_the_last_digit(program: Path, core: str) -> None:
    first, second = (run(program, "sum", core=core, cache=True) for _ in range(2))
    assert first.regions == second.regions and first.stdout == second.stdout


def test_what_is_done_outside_of_regions_does_not_matter(program: Path) -> None:
    straight, detour = run(program, core="cortex-a72"), run(program, "detour", core="cortex-a72")
    assert straight.regions == detour.regions and straight.stderr != detour.stderr


def test_callers_count_what_they_call(program: Path) -> None:
    region = run(program).regions[9]
    outer, inner = (
        next(f for f in region.functions if f.name == name) for name in ("outer", "count_down")
    )
    assert inner.instructions == 2 * (5 * 50 + 1) and inner.total_cycles == inner.cycles
    assert outer.cycles < 60 and outer.total_cycles == outer.cycles + inner.cycles
    assert region.cycles_in("program")["outer"] == outer.total_cycles


def test_caches(program: Path) -> None:
    done = run(program, "sum", cache=True)
    assert done.stdout == b"128 32768\n"
    cold, warm, large = (done.regions[n] for n in range(3))
    # Memory was just written, so that level 1 holds the end of it, and level 2 not all.
    assert (warm.l1_misses, warm.l2_misses) == (0, 0) and warm.loads >= 64
    assert cold.l1_misses >= 32 and warm.cycles < cold.cycles
    # Of two neighbouring lines, one is fetched on a miss and the other with it.
    assert large.l1_misses == pytest.approx((2 << 20) / 64 / 2, rel=0.05)
    assert large.l2_misses == pytest.approx(large.l1_misses, rel=0.05)
    assert large.cycles > large.l2_misses * CORES["cortex-a53"].misses[1] / 2
    assert run(program, "sum").regions[2].cycles < large.cycles / 4


def test_without_the_model_no_cache_is_counted(program: Path) -> None:
    region = run(program, "sum").regions[2]
    assert (region.loads, region.l1_misses, region.l2_misses) == (0, 0, 0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("fail", r"program failed under emulation \(exit code 3: no such frame\)"),
        ("abort", "SIGABRT"),
        ("dot", r"\(SIGILL: an instruction that this core lacks\)"),
        ("threads", "more than one thread ran in a measured region"),
    ],
)
def test_failures_are_told(program: Path, argument: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as error:
        run(program, argument)
    assert "\n" not in str(error.value)


def test_dot_products_run_where_there_are_some(program: Path) -> None:
    assert run(program, "dot", core="cortex-a55").stdout.startswith(b"read")


def test_a_program_that_hangs_is_ended(program: Path) -> None:
    with pytest.raises(TargetError, match="program did not end within 1 s"):
        EmulatedBoard("cortex-a53").execute([program, "hang"], timeout_s=1)


def test_a_missing_program_is_told(tmp_path: Path, program: Path) -> None:
    with pytest.raises(TargetError, match="nothing failed under emulation"):
        EmulatedBoard("cortex-a53").execute([tmp_path / "nothing"])


def test_no_emulator_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(TargetError, match="install the Debian package qemu-user"):
        EmulatedBoard("cortex-a53")
