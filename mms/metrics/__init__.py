"""PUBLIC: the names under which handlers of MMS 1.x report metrics, under 1.x's import paths."""
