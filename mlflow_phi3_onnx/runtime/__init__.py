"""The native libraries, each behind one module."""
