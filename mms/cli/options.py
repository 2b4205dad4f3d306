"""Read options as 0.4 and 1.x did: by an unambiguous beginning, and several values after one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

import click

#: Options that may be followed by several values; click's take one each.
_LISTS = ("--models",)
#: The options of the commands before this one. A beginning that was unambiguous there stays so,
#: however many options this server has: ``--model`` is ``--models`` as in 0.4.
_ORIGINALS = (
    (
        *("--help", "--models", "--service", "--gen-api", "--port", "--host", "--gpu"),
        *("--log-file", "--log-rotation-time", "--log-level", "--metrics-write-to"),
    ),
    (
        *("--help", "--start", "--stop", "--foreground", "--mms-config", "--model-store"),
        *("--models", "--log-config"),
    ),
)


class Command(click.Command):
    """A command whose options may be shortened, as argparse allows.

    Its help shows options in groups: those declared for it, then those of `groups`.
    """

    #: Titles of further groups of options, and the names of their parameters.
    groups: Sequence[tuple[str, Sequence[str]]] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, shortened options and lists of values included."""
        if ctx.resilient_parsing:
            # A shell completes what is not written out yet.
            return super().parse_args(ctx, args)
        options = {
            name: parameter
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        }
        return super().parse_args(ctx, expand(args, options, ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        grouped = {name for _, names in self.groups for name in names}
        own = [
            parameter.name
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and parameter.name not in grouped
        ]
        for title, names in (("Options", own), *self.groups):
            records = [
                record
                for parameter in self.get_params(ctx)
                if parameter.name in names and (record := parameter.get_help_record(ctx))
            ]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def expand(
    args: Iterable[str],
    options: dict[str, click.Option],
    context: click.Context | None = None,
) -> list[str]:
    """Return the arguments with every option written out, and repeated before each value of a list.

    Args:
        args: As typed.
        options: The long options by name.
        context: Names the command in messages.

    Raises:
        click.UsageError: A beginning fits several options, or a value is missing.
    """
    expanded: list[str] = []
    list_option = waiting = ""
    is_end = False
    for arg in args:
        is_option = not is_end and arg.startswith("--")
        if waiting and not is_option:
            expanded.append(arg)
            waiting = ""
        elif not is_option:
            in_list = list_option and (is_end or not arg.startswith("-"))
            expanded.extend([list_option, arg] if in_list else [arg])
            list_option = list_option if in_list else ""
        elif waiting:
            break
        elif arg == "--":
            is_end, list_option = True, ""
            expanded.append(arg)
        else:
            typed, separator, value = arg.partition("=")
            name = complete(typed, options, context)
            option = options.get(name)
            takes_value = option is not None and not (option.is_flag or option.count)
            list_option = name if name in _LISTS else ""
            if list_option:
                expanded.extend([name, value] if separator else [])
            else:
                expanded.append(f"{name}{separator}{value}")
                waiting = name if takes_value and not separator else ""
    if waiting:
        raise click.BadOptionUsage(waiting, f"Option {waiting!r} needs a value.", context)
    if list_option and (not expanded or list_option not in expanded):
        # Without a single value: click says so.
        expanded.append(list_option)
    return expanded


def complete(typed: str, options: Iterable[str], context: click.Context | None = None) -> str:
    """Return the option that begins as typed; what fits none is returned as it is.

    Raises:
        click.UsageError: It fits several.
    """
    names = list(options)
    if typed in names:
        return typed
    fitting = [name for name in names if name.startswith(typed)]
    for known in (names, *_ORIGINALS):
        found = [name for name in fitting if name in known]
        if len(found) == 1:
            return found[0]
    if fitting:
        raise click.UsageError(
            f"Option {typed!r} is ambiguous: it could be {', '.join(sorted(fitting))}.", context
        )
    return typed


def own_command() -> list[str]:
    """Return the words that start this command again, up to its arguments."""
    main = sys.modules["__main__"]
    if main.__spec__ is None and os.path.isfile(sys.argv[0]):
        return [sys.executable, sys.argv[0]]
    return [sys.executable, "-m", main.__spec__.name if main.__spec__ else "mms.cli.serve"]
