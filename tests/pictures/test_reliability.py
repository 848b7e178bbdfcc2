import numpy as np

from ldseg.metrics.probability import CalibrationBins
from ldseg.pictures.reliability import draw_reliability


def test_a_diagram_is_drawn_from_the_bins_also_where_some_are_empty(tmp_path):
    generator = np.random.default_rng(0)
    p = generator.uniform(0.5, 1, size=(1, 4000))
    bins = CalibrationBins()
    bins.add_top_label(p, (generator.random(4000) < p[0]).astype(np.uint8))
    content = {"counts": bins.counts, "hits": bins.hits, "confidence": bins.confidence, "ece": bins.error}
    path = draw_reliability(content, tmp_path / "new" / "reliability.png")
    assert path.read_bytes().startswith(b"\x89PNG") and bins.error < 0.03
