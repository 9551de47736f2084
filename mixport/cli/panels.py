"""The help of a command with many options: one section a group, in plain text."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_REST = "Options"


class PanelCommand(TyperCommand):
    """Groups options by their `rich_help_panel`, which typer itself does only with rich markup."""

    # The types of both are typer's private ones.
    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group under its name, in the order in which the groups appear."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = (
                    "Arguments"
                    if parameter.param_type_name == "argument"
                    else getattr(parameter, "rich_help_panel", None) or _REST
                )
                groups.setdefault(title, []).append(record)
        # What every command has comes last.
        for title in sorted(groups, key=lambda name: name == _REST):
            with formatter.section(title):
                formatter.write_dl(groups[title])
