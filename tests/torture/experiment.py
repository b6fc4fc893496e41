"""The experiment that the tortures train: digits, two sites, networks of a few hundred parameters."""

from __future__ import annotations

SITES = ("north", "south")
INTERVAL = 5
STEPS = 25
TRAINING = f"{{steps: {STEPS}, batch_size: 8, warmup_steps: 2, log_every: 1, checkpoint_every: {INTERVAL}}}"
NODE = f"network: {{channels: 8, multipliers: [1], blocks: 1}}, training: {TRAINING}, sampler: {{steps: 2}}"
CONFIG = f"""
data: {{dataset: digits}}
server: {{{NODE}}}
client: {{{NODE}}}
clients:
  north: {{labels: ["0", "1", "2"], cut: {{sigma: 0.5}}, ledger: north.sqlite}}
  south: {{labels: ["3", "4"], cut: {{sigma: 1.0}}, ledger: south.sqlite}}
"""
