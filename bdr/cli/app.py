"""The commands by name, and the options that stand before or among those of any command."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

from cyclopts import App, Parameter

from bdr.cli import configuration, doctor, fsck, get, holding, operations, put, reaping, references, schema, storages
from bdr.cli.logs import configure
from bdr.cli.options import Common, CommonOptions

# The help is not wrapped again, so its lines, here and in the commands' docstrings, fit into 78 columns.
_HELP = """Keep binary data for workflows: files by key, with counted references.

Settings come from BDR_* variables and bdr.toml; `bdr config show` lists them.
Without a database URL, a PostgreSQL of bdr's own is started when needed.

For example:
    bdr put report.pdf --label workflow=invoices
    bdr get 06abcdefghijklmnopqrstuvwx.pdf -o report.pdf
    bdr ls --namespace tenant-1 --json
    bdr reaper

Exit codes: 0 done; 1 failed, also because of a wrong configuration;
2 wrong usage; 3 no such reference."""
_NOTHING_GIVEN = Common()
# Stands for "-", which cyclopts takes for an option; no argument of a process can have a NUL.
_DASH = "\0"


def _version() -> str:
    from importlib.metadata import version

    return version("bdr")


def _in_this_order(parent: App, **commands: Callable[..., Any] | App) -> App:
    for number, (name, command) in enumerate(commands.items()):
        if isinstance(command, App):
            command.sort_key = number
            parent.command(command)
        else:
            parent.command(command, name=name, sort_key=number)
    return parent


app = _in_this_order(
    App(
        name="bdr",
        help=_HELP,
        version=_version,
        help_format="plaintext",
        default_parameter=Parameter(negative=(), show_default=False),
    ),
    put=put.put,
    get=get.get,
    stat=references.stat,
    ls=references.ls,
    explain=references.explain,
    register=holding.register,
    release=holding.release,
    holders=holding.holders,
    pin=holding.pin,
    unpin=holding.unpin,
    rm=references.rm,
    reap=reaping.reap,
    reaper=reaping.reaper,
    ops=operations.ops,
    stats=operations.stats,
    fsck=fsck.fsck,
    storage=_in_this_order(
        App(name="storage", help="See and check the storages."), ls=storages.storage_ls, check=storages.storage_check
    ),
    db=_in_this_order(
        App(name="db", help="See and migrate the catalog's schema."),
        upgrade=schema.upgrade,
        current=schema.current,
        check=schema.check,
        downgrade=schema.downgrade,
        history=schema.history,
    ),
    doctor=doctor.doctor,
    config=_in_this_order(App(name="config", help="See the settings."), show=configuration.config_show),
)


def command_of(tokens: Sequence[str]) -> Callable[[], Any]:
    """What the arguments ask for, ready to be called; raises CycloptsError when they are wrong."""
    tokens = [_DASH if one == "-" else one for one in tokens]
    command, bound, _ = app.meta.parse_args(tokens, exit_on_error=False, print_error=False)
    return partial(command, *bound.args, **bound.kwargs)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], common: CommonOptions = _NOTHING_GIVEN
) -> Any:
    command, bound, left_out = app.parse_args(tokens, exit_on_error=False, print_error=False)
    configure(common.level("warning"))
    bound.arguments = {name: _with_dashes(value) for name, value in bound.arguments.items()}
    if "common" in left_out:
        bound.arguments["common"] = common
    return command(*bound.args, **bound.kwargs)


def _with_dashes(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_dashes(one) for one in value]
    return "-" if value == _DASH else value
