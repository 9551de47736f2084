"""Every form of the kit, in the order of the tables. Seeds follow from the names, so a new form changes no
other.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from mixport.records.errors import BadOptionError
from mixport.validate.conformance.forms import (
    attention,
    carriers,
    casts,
    codes,
    composites,
    floats,
    functions,
    layers,
    products,
    sums,
    unused,
)
from mixport.validate.conformance.forms.case import Form, FormCase

FORMS: tuple[Form, ...] = (
    *layers.FORMS,
    *products.FORMS,
    *carriers.FORMS,
    *codes.FORMS,
    *floats.FORMS,
    *sums.FORMS,
    *casts.FORMS,
    *composites.FORMS,
    *attention.FORMS,
    *functions.FORMS,
    *unused.FORMS,
)


def cases_of(form: Form) -> tuple[FormCase, ...]:
    """The graphs of one form, with their runs; always the same ones."""
    return form.make(np.random.default_rng(zlib.crc32(form.name.encode("ascii"))))


def choose(prefixes: Sequence[str]) -> tuple[Form, ...]:
    """Forms whose names start with one of the prefixes, all of them where there is none.

    Raises:
        BadOptionError: a prefix that no form has.
    """
    for prefix in prefixes:
        if not any(form.name.startswith(prefix) for form in FORMS):
            families = ", ".join(sorted({form.name.split(".")[0] for form in FORMS}))
            raise BadOptionError(
                f"--form is {prefix}, and no form's name starts so, allowed {families} ...",
                hint="mixport conformance --list",
            )
    return tuple(
        form for form in FORMS if not prefixes or any(form.name.startswith(prefix) for prefix in prefixes)
    )
