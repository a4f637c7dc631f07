"""The version of mmprune3d, in a file that setup.py can read without importing anything."""

__version__ = '0.1.0'
