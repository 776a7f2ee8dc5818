"""Lists the commands in `--help`, and finds the nearest one on a typo."""

import difflib
import re
import sys

from typer.core import TyperCommand, TyperGroup


class Commands(TyperGroup):
    """A group that lists its commands in sections, the most used first, and suggests the nearest one on a typo."""

    def parse_args(self, ctx, args):
        if not args:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        for before, argument in zip(["", *args], args):  # such as "$MODEL" if this variable is not set
            option, equals, value = argument.partition("=")
            if argument == "" and not re.match("--.", before):
                ctx.fail("An argument is empty: give a value.")
            if argument == "" or (re.match("--.", option) and equals and not value):
                ctx.fail(f"{option or before} is empty: give a value, or leave the option out.")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx, args):
        if (words := " ".join(args[:2])) in self.commands:  # to index a folder named "export", write ./export
            args = [words, *args[2:]]
        name = args[0].replace("_", "-")
        if not name.startswith("-") and name not in self.commands:
            # Not our own `did_you_mean`: it would import transformers.
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"{args[0]!r} is not a command{hint}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx, formatter):
        self.format_commands(ctx, formatter)
        TyperCommand.format_options(self, ctx, formatter)  # type: ignore[arg-type]  # TyperGroup's lists commands last

    def format_commands(self, ctx, formatter):
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            row = (name, command.get_short_help_str(formatter.width))
            sections.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(row)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
