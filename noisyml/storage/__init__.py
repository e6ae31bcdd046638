"""Files written whole or not at all, and columns in Parquet."""
