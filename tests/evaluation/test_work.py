"""collafuse.evaluation.work: counted against arithmetic, and bytes against files."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from collafuse.core import intermediate as intermediates
from collafuse.data.dealing import load_sites
from collafuse.evaluation.arms import SplitRun
from collafuse.evaluation.work import multiply_accumulates, work_tables
from tests.tiny import CPU


def test_a_convolution_counts_its_multiply_accumulates():
    layer, x = torch.nn.Conv2d(3, 5, 3, padding=1), torch.zeros(2, 3, 8, 8)
    forward = 2 * 5 * 8 * 8 * 3 * 9
    assert multiply_accumulates(lambda: layer(x)) == forward
    # Backward: once more for the weights; the input asks for no gradient.
    assert multiply_accumulates(lambda: layer(x).sum().backward()) == 2 * forward


def test_attention_counts_its_matrix_products():
    """torch's counter knows the kernels of a GPU, and not that of a processor: it counted nothing there."""
    q = torch.zeros(2, 3, 16, 8, requires_grad=True)
    forward = 2 * 3 * 2 * 16 * 16 * 8
    assert multiply_accumulates(lambda: scaled_dot_product_attention(q, q, q)) == forward
    with torch.inference_mode():
        assert multiply_accumulates(lambda: scaled_dot_product_attention(q, q, q)) == forward
    assert multiply_accumulates(lambda: scaled_dot_product_attention(q, q, q).sum().backward()) == 3 * forward


def tables_of(run):
    """The run as its arms see it, and each table's rows by column."""
    sites = load_sites(run.read_config())
    split = SplitRun(run, {name: site.held_out for name, site in sites.items()}, CPU)
    return split, [
        [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in work_tables(split, run)
    ]


@pytest.fixture(scope="module")
def tables(digits_run):
    return tables_of(digits_run)


def test_the_work_of_an_image_is_that_of_its_evaluations(tables):
    split, (work, _) = tables
    assert [(row["client"], row["side"], row["NFE"]) for row in work[:2]] == [
        ("north", "server", 4),
        ("north", "client", 3),
    ]
    for row in work:
        assert row["MACs per image"] == row["MACs per evaluation"] * row["NFE"] > 0
        assert row["ms per image"] > 0
    assert work[0]["parameters"] == sum(p.numel() for p in split.server.model.denoiser.parameters())


def test_a_server_in_closed_form_evaluates_nothing_and_has_no_training(statistics_run):
    split, (work, traffic) = tables_of(statistics_run)
    server = work[0]
    assert (server["side"], server["parameters"], server["NFE"], server["MACs per image"]) == ("server", None, 0, 0)
    assert server["MACs in training"] is None and work[1]["MACs in training"] > 0
    assert len(traffic) == 3
    (said,) = work_tables(split, statistics_run)[1].notes
    assert "Statistics are sent once" in said and "per image, however" not in said


def test_training_counts_forward_and_backward_over_every_image(tables):
    for row in tables[1][0][1::2]:
        assert 2 < row["MACs in training"] / (row["MACs per evaluation"] * 4 * 8) <= 3


def test_the_bytes_are_those_of_the_files(tables, digits_run):
    split, (_, traffic) = tables
    row = next(one for one in traffic if one["client"] == "south")
    path = digits_run.server.releases / "south.safetensors"
    assert row["release files (training, once)"] == path.stat().st_size
    delivered = split.from_server("south", 16, 0)
    assert row["intermediate, per image"] == round(len(intermediates.to_bytes(delivered)) / 16)
    assert row["bundle (once)"] is None
