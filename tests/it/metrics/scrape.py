"""What Prometheus reads at a URL: one JSON object of families, as its own parser has them. Argument: the URL of /metrics."""

import json
import math
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

with urllib.request.urlopen(sys.argv[1], timeout=30) as response:
    content_type, text = response.headers["content-type"], response.read().decode()
assert content_type == "text/plain; version=0.0.4; charset=utf-8", content_type
assert text.endswith("\n"), "the last line ends with a line feed"


def buckets_are_cumulative(family):
    """Each series' buckets grow up to its count, and the last one is unbounded."""
    series = {}
    for sample in family.samples:
        labels = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
        series.setdefault(labels, {}).setdefault(sample.name.removeprefix(family.name), []).append(sample)
    for suffixes in series.values():
        bounds = [float(sample.labels["le"]) for sample in suffixes["_bucket"]]
        counts = [sample.value for sample in suffixes["_bucket"]]
        assert bounds == sorted(bounds) and bounds[-1] == math.inf, bounds
        assert counts == sorted(counts) and [counts[-1]] == [sample.value for sample in suffixes["_count"]], counts
        assert len(suffixes["_sum"]) == 1, suffixes


families = {}
for family in text_string_to_metric_families(text):
    assert family.type in ("counter", "gauge", "histogram"), (family.name, family.type)
    assert family.documentation.endswith("."), (family.name, family.documentation)
    assert family.name not in families, f"{family.name} is there twice"
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
    assert series and len(series) == len(set(series)), (family.name, series)
    if family.type == "histogram":
        buckets_are_cumulative(family)
    families[family.name] = {
        "type": family.type,
        "samples": [{"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in family.samples],
    }
print(json.dumps(families))
