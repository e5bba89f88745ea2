"""A multi-tenant booking service for rooms, on PostgreSQL."""
