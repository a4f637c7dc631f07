"""The papers' tables on synthetic or random data, one folder per method; run as ``python -m experiments.<method>``."""
