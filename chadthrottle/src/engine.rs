//! Requests become limits, limits go to backends.
