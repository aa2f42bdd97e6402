"""Records of references that were deleted: very many at once, and most of each is the same for all of them."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Text, Uuid, bindparam, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from bdr.catalog.base import AnyRow, asked_for
from bdr.catalog.operation import Operation
from bdr.catalog.reference import DeletedReference
from bdr.keys import new_id
from bdr.progress import OperationStatus

_NOW = func.clock_timestamp()
_GIVEN = asked_for(
    "given", operation_id=Uuid(), file_key=Text(), namespace=Text(), file_size=BigInteger(), detail=Text()
)
_RECORD: dict[str, Any] = {
    "operation_id": _GIVEN.c.operation_id,
    "operation_type": bindparam("type", type_=Text()),
    "file_key": _GIVEN.c.file_key,
    "namespace": _GIVEN.c.namespace,
    "instance_id": bindparam("instance", type_=Uuid()),
    "total_bytes": _GIVEN.c.file_size,
    "processed_bytes": _GIVEN.c.file_size,
    "status": literal_column(f"'{OperationStatus.SUCCEEDED}'"),
    "detail": cast(_GIVEN.c.detail, JSONB),
    "started_at": _NOW,
    "updated_at": _NOW,
    "finished_at": _NOW,
}
WRITE_DELETED = insert(Operation).from_select(list(_RECORD), select(*_RECORD.values()).select_from(_GIVEN))


async def write(
    connection: AsyncConnection,
    operation_type: str,
    instance_id: uuid.UUID,
    references: Sequence[AnyRow | DeletedReference],
    details: Sequence[str],
) -> None:
    """Write a record for each reference that this transaction has deleted, with its detail as JSON."""
    if not references:
        return
    values = {
        "type": operation_type,
        "instance": instance_id,
        "asked_operation_id": [new_id() for _ in references],
        "asked_file_key": [one.file_key for one in references],
        "asked_namespace": [one.namespace for one in references],
        "asked_file_size": [one.file_size for one in references],
        "asked_detail": details,
    }
    await connection.execute(WRITE_DELETED, values)
