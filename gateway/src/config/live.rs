//! The running configuration.
