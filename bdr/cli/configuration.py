"""`bdr config show`: every setting with its value and the place it came from."""

from dataclasses import asdict

from bdr.cli.options import Given, Json
from bdr.cli.output import emit_json, emit_table


async def config_show(*, as_json: Json = False, common: Given) -> None:
    """Show every setting, its value and where it came from."""
    from bdr.settings import describe_settings

    lines = describe_settings(common.settings())
    if as_json:
        emit_json([asdict(line) for line in lines])
    else:
        emit_table(("SETTING", "VALUE", "SOURCE"), [(line.name, line.value, line.source) for line in lines])
