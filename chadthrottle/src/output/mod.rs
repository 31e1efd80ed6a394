//! Tables and JSON: the only code that writes results to stdout.
