"""Tests of the deployment target. A package, so that its fixtures end with it."""
