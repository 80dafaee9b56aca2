//! Kernels on every device of this machine, and on a double of one that it lacks.

mod attention;
mod common;
mod cuda;
mod linear;
