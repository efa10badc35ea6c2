"""The dashboard's users. Passwords are kept as argon2id hashes only."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from pm.errors import RecordsError
from pm.record_database import Database, insert_new
from pm.record_tables import account

log = logging.getLogger(__name__)

_hasher = PasswordHasher()


class Role(StrEnum):
    """What a user may do, each more than the one before."""

    VIEWER = "viewer"
    """Look."""
    OPERATOR = "operator"
    """Acknowledge, shelve and close alerts too."""
    ADMIN = "admin"
    """Everything."""


@dataclass(frozen=True, slots=True)
class User:
    """A person who may log in."""

    name: str
    role: Role
    disabled: bool


class UserRecords:
    """Who may log in, and what they may do."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_user(self, name: str, password: str, role: str = Role.OPERATOR) -> User:
        """Raises RecordsError when the name is taken or empty, the password empty, or the role unknown."""
        if role not in set(Role):
            raise RecordsError(f"no role {role!r}; known are: {', '.join(Role)}")
        if not name.strip() or not password:
            raise RecordsError("a user needs a name and a password; give both")
        row = {"name": name, "password": _hasher.hash(password), "role": str(role), "disabled": False}
        with self._database.write() as connection:
            if not insert_new(connection, account, row):
                raise RecordsError(f"user {name!r} exists already; choose another name")
        log.info("user %s added as %s", name, role)
        return User(name, Role(role), False)

    def check_password(self, name: str, password: str) -> User | None:
        """The user when the password is theirs and they are not disabled. Takes as long for a name nobody has."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(account).where(account.c.name == name)).one_or_none()
        try:
            _hasher.verify(_nobodys_hash() if row is None else row.password, password)
        except VerificationError:
            return None
        if row is None or row.disabled:
            return None
        if _hasher.check_needs_rehash(row.password):
            with self._database.write() as connection:
                connection.execute(
                    sa.update(account)
                    .where(account.c.name == name, account.c.password == row.password)
                    .values(password=_hasher.hash(password))
                )
        return User(row.name, Role(row.role), False)

    def set_password(self, name: str, password: str) -> None:
        """Raises RecordsError when nobody has this name or the password is empty."""
        if not password:
            raise RecordsError(f"user {name!r}: the password is empty; give one")
        self._update(name, password=_hasher.hash(password))
        log.info("password of user %s changed", name)

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Raises RecordsError when nobody has this name."""
        self._update(name, disabled=disabled)
        log.info("user %s %s", name, "disabled" if disabled else "enabled")

    def users(self) -> list[User]:
        """Everyone, by name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(account).order_by(account.c.name))
            return [User(row.name, Role(row.role), row.disabled) for row in rows]

    def _update(self, name: str, **values: object) -> None:
        with self._database.write() as connection:
            if connection.execute(sa.update(account).where(account.c.name == name).values(**values)).rowcount == 0:
                raise RecordsError(f"no user {name!r}; 'pm users list' shows them")


@functools.cache
def _nobodys_hash() -> str:
    return _hasher.hash("the password of nobody")
