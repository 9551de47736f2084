"""The conformance kit: small graphs of every operator form, run on a runtime, compared with mixport's own
arithmetic.
"""

from __future__ import annotations
