"""One run a folder, in SQLite alone: what fedrho 0.1 wrote, there known as schema 2."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run", sa.LargeBinary, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("tag_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "releases",
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("rho", sa.Float, nullable=False),
        sa.Column("weights_sha256", sa.LargeBinary, nullable=False),
        sa.Column("velocity_sha256", sa.LargeBinary, nullable=False),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("committed_at", sa.Float, nullable=False),
        sa.Column("link", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "noise_nodes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("step", sa.Integer, sa.ForeignKey("releases.step"), nullable=False),
        sa.Column("seed", sa.LargeBinary),
        sa.Column("digest", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "noise_vectors",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("step", sa.Integer, sa.ForeignKey("releases.step"), nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
    )
    op.create_table(
        "participations",
        sa.Column("tag", sa.LargeBinary, primary_key=True),
        sa.Column("step", sa.Integer, sa.ForeignKey("releases.step"), primary_key=True),
    )
