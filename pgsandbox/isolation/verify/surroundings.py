"""What belongs to a database but lies outside of its files, as questions: what is there, and its value."""

# ruff: noqa: S608 -- SQL made of names that PostgreSQL has quoted itself, and of our own constants

from __future__ import annotations

from psycopg import sql

DEPENDENT = """
    (SELECT d.* FROM pg_shdepend d JOIN pg_database b ON b.oid = d.dbid WHERE b.datname = current_database()) d
"""
"""The rows of pg_shdepend that concern this database."""

_THIS = "(SELECT oid FROM pg_database WHERE datname = current_database())"
_OWNER = f"(SELECT datdba FROM pg_database WHERE oid = {_THIS})"
_PREFIX = f"(SELECT regexp_replace(rolname, '_owner$', '_') FROM pg_roles WHERE oid = {_OWNER})"
"""What the names of all databases and roles begin with that pgsandbox itself makes and removes in this server."""

_ROLE = """
    SELECT format('role %s: %s', rolname, key), value
    FROM pg_authid r, jsonb_each_text(
        to_jsonb(r) - ARRAY['oid', 'rolconnlimit']
        || jsonb_build_object('rolpassword', 'verifier ' || left(md5(rolpassword), 8)))
"""
"""Passwords are only told apart. The connection limit is pgsandbox's own business: a marker lowers it for one test."""

_MEMBER = """
    SELECT format('%s is a member of %s, granted by %s', m.member::regrole, m.roleid::regrole, m.grantor::regrole),
           (to_jsonb(m) - ARRAY['oid', 'roleid', 'member', 'grantor'])::text
    FROM pg_auth_members m
"""

_SETTINGS = """
    SELECT format('settings of role %s in database %s', coalesce(r.rolname, 'any'), coalesce(d.datname, 'any')),
           setconfig::text
    FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole
"""

_NAMED = """
    SELECT 'pg_database'::regclass AS class, oid, 'database ' || datname AS name FROM pg_database
    UNION ALL SELECT 'pg_authid'::regclass, oid, 'role ' || rolname FROM pg_roles
    UNION ALL SELECT 'pg_tablespace'::regclass, oid, 'tablespace ' || spcname FROM pg_tablespace
"""


def questions(login: str, *, is_let_in: bool, whole_server: bool) -> dict[str, str]:
    """The questions by name, in SQL, about the database that is connected to and the role `login` that enters it.

    Whether its password still lets it in is known already: that can't be asked, and a verifier has a salt. With
    `whole_server` also those about other databases and roles, but for pgsandbox's own.
    """
    entering = sql.Literal(login).as_string()
    mine = f"({_OWNER}, (SELECT oid FROM pg_roles WHERE rolname = {entering}))"
    found = {
        "database": f"""
            SELECT 'the database: ' || key, value FROM pg_database d, jsonb_each_text(
                to_jsonb(d) - ARRAY['oid', 'datfrozenxid', 'datminmxid']) WHERE d.oid = {_THIS}""",  # a clone's own
        "roles": f"{_ROLE} WHERE r.oid IN {mine} AND NOT (rolname = {entering} AND key = 'rolpassword')",
        "password": f"SELECT 'the password of ' || {entering}, '{'the right one' if is_let_in else 'another'}'",
        "memberships": f"{_MEMBER} WHERE m.member IN {mine}",
        "settings": f"{_SETTINGS} WHERE s.setdatabase = {_THIS} OR s.setdatabase = 0 AND s.setrole IN {mine}",
        "comments": f"""
            SELECT 'comment on ' || n.name, c.description FROM ({_NAMED}) n
            JOIN pg_shdescription c ON c.classoid = n.class AND c.objoid = n.oid
            WHERE n.oid = {_THIS} OR n.oid IN {mine}""",
        "labels": f"""
            SELECT format('security label of %s for %s', n.name, l.provider), l.label FROM ({_NAMED}) n
            JOIN pg_shseclabel l ON l.classoid = n.class AND l.objoid = n.oid
            WHERE n.oid = {_THIS} OR n.oid IN {mine}""",
        "rights": f"""
            SELECT format('the database depends on %s', n.name), string_agg(d.deptype::text, '' ORDER BY d.deptype)
            FROM pg_shdepend d JOIN ({_NAMED}) n ON n.class = d.refclassid AND n.oid = d.refobjid
            WHERE d.classid = 'pg_database'::regclass AND d.objid = {_THIS} GROUP BY n.name""",
        "subscriptions": f"""
            SELECT format('subscription %s: %s', subname, key), value
            FROM pg_subscription s, jsonb_each_text(to_jsonb(s) - ARRAY['oid', 'subdbid']) WHERE subdbid = {_THIS}""",
        "replication slots": """
            SELECT 'replication slot ' || slot_name, concat_ws(' ', slot_type, plugin) FROM pg_replication_slots
            WHERE database = current_database()""",
        "prepared transactions": """
            SELECT 'prepared transaction ' || gid, 'of ' || owner FROM pg_prepared_xacts
            WHERE database = current_database()""",
        "advisory locks": f"""
            SELECT format('advisory lock (%s, %s, %s)', classid, objid, objsubid), mode FROM pg_locks
            WHERE locktype = 'advisory' AND database = {_THIS}""",
    }
    return found | _others(mine) if whole_server else found


def _others(mine: str) -> dict[str, str]:
    def is_ours(name: str) -> str:
        return f"starts_with({name}::text, {_PREFIX})"

    return {
        "other databases": f"""
            SELECT 'database ' || datname, pg_get_userbyid(datdba) FROM pg_database WHERE NOT {is_ours("datname")}""",
        "other roles": f"{_ROLE} WHERE NOT {is_ours('rolname')}",
        "other memberships": f"{_MEMBER} WHERE m.member NOT IN {mine} AND NOT {is_ours('m.member::regrole')}",
        "other settings": f"""{_SETTINGS} WHERE s.setdatabase <> {_THIS} AND s.setrole NOT IN {mine}
            AND NOT {is_ours("coalesce(d.datname, '')")} AND NOT {is_ours("coalesce(r.rolname, '')")}""",
        "other comments": f"""
            SELECT 'comment on ' || n.name, c.description FROM ({_NAMED}) n
            JOIN pg_shdescription c ON c.classoid = n.class AND c.objoid = n.oid
            WHERE NOT {is_ours("split_part(n.name, ' ', 2)")}""",
        "tablespaces": "SELECT 'tablespace ' || spcname, concat_ws(' ', spcacl, spcoptions) FROM pg_tablespace",
        "rights on settings": "SELECT 'setting ' || parname, paracl::text FROM pg_parameter_acl",
        "configuration": "SELECT format('%s in %s', name, sourcefile), setting FROM pg_file_settings",
    }
