"""Scales and zero points of all sites, from what their tensors hold on the calibration images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.prepared import Prepared
from mixport.quantize.scales.carriers import group_params
from mixport.quantize.scales.gate_params import settle_gates
from mixport.quantize.scales.histograms import Histogram, HistogramObserver, collect
from mixport.quantize.scales.pool_scales import widen_pool_scales
from mixport.quantize.scales.ranges import (
    ATTENTION_P,
    OUTPUT_MARGIN,
    P,
    ScaleRule,
    activation_params,
    finish_carrier,
)
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.records.errors import BadOptionError
from mixport.records.progress import Progress


def calibrated_params(
    prepared: Prepared, batches: CalibrationBatches, *, progress: Progress
) -> dict[str, QuantParams]:
    """Parameters of every site by name: statistics are streamed over the images once. Steps that were given
    are taken. Raises BadOptionError where one cannot be.
    """
    params = choose_params(
        prepared.plan, site_histograms(prepared, batches, progress=progress), prepared.rule
    )
    return given_steps(prepared, params)


def given_steps(prepared: Prepared, params: Mapping[str, QuantParams]) -> dict[str, QuantParams]:
    """Parameters with the steps of the table in the place of calibrated ones.

    Raises:
        BadOptionError: a step whose scale is tied to those of other tensors, or that the target does not
            have.
    """
    made, tied = dict(params), {name for group in prepared.plan.groups for name in group.members}
    for name, (scale, zero_point) in prepared.table.steps.items():
        wanted = float(np.float32(scale))
        if not prepared.rule.grid.holds(wanted):
            raise BadOptionError(
                f"width table: site {name} has scale {scale!r}, allowed powers of two",
                hint=f"mixport targets show {prepared.target.name}",
            )
        readers = [
            site
            for site in prepared.plan.sites
            if name == (site.base or site.name) and site.role == "compute"
        ]
        if not readers or any(site.name in tied for site in readers):
            raise BadOptionError(
                f"width table: the scale of site {name} is tied to those of other tensors, allowed: its bits",
                hint=f"leave the scale of {name} out",
            )
        for site in readers:
            try:
                made[site.name] = finish_carrier(
                    scale=wanted,
                    zero_point=zero_point,
                    bits=site.bits,
                    storage=made[site.name].storage,
                    bounds=site.bounds,
                )
            except ValueError as error:
                raise BadOptionError(f"width table: site {name}: {error}", hint="--sites FILE") from error
    return made


def site_histograms(
    prepared: Prepared, batches: CalibrationBatches, *, progress: Progress
) -> dict[str, Histogram]:
    """What the tensor of every site holds on all calibration images, by site name."""
    plan, images = prepared.plan, batches.all()
    names = {site.tensor: site.name for site in reversed(plan.sites)}
    limits = {
        site.tensor: site.bounds[1]
        for site in plan.sites
        if site.bounds is not None and site.bounds[1] is not None
    }
    reaches = {site.tensor: site.reach for site in plan.sites if site.reach is not None}
    done = 0
    observers: dict[fx.Node, HistogramObserver] = {}
    parts = batches.of(images, dynamic_batch=prepared.captured.dynamic_batch)
    with progress.track("statistics", total=len(images)) as advance:
        for seen, current in collect(prepared.graph, names, parts, limits=limits, reaches=reaches):
            advance(seen - done)
            done, observers = seen, current
    per_tensor = {node: observer.result() for node, observer in observers.items()}
    return {site.name: per_tensor[site.tensor] for site in plan.sites}


def choose_params(
    plan: QuantizationPlan, histograms: Mapping[str, Histogram], rule: ScaleRule
) -> dict[str, QuantParams]:
    """Scale, zero point and range of every site: tied carriers first, then the free ones."""
    by_name = {site.name: site for site in plan.sites}
    params: dict[str, QuantParams] = {}
    for group in plan.groups:
        params.update(group_params(group, by_name, histograms, rule=rule))
    for site in plan.sites:
        if site.fixed is not None:
            params[site.name] = site.fixed
        elif site.name not in params:
            params[site.name] = activation_params(
                histograms[site.name],
                bits=site.bits,
                storage="int16" if site.bits > 8 else "uint8",
                bounds=site.bounds,
                rule=rule,
                power=ATTENTION_P if site.op == "softmax" else P,
                margin=OUTPUT_MARGIN if site.is_output else None,
            )
    return settle_gates(plan, widen_pool_scales(plan, params, rule), rule)
