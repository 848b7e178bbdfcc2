"""Lines and powers through measured seconds."""

from benchmarks.speed import laws


def test_a_line_and_a_power_are_found_again():
    sizes = [1, 2, 8, 32]
    assert laws.line("K", sizes, [0.5 + 0.25 * x for x in sizes]).startswith("seconds = 0.5 + 0.25 K; measured from 1")
    assert "off by at most 0%" in laws.line("K", sizes, [0.5 + 0.25 * x for x in sizes])
    assert laws.power("voxels", sizes, [3 * x**1.5 for x in sizes]).startswith("seconds = 3 voxels^1.50;")


def test_it_is_told_where_a_law_is_off_the_most():
    assert laws.worst("K", [1, 2, 4], [1.0, 2.0, 8.0], lambda x: x).endswith("off by at most 50%, at K = 4")
