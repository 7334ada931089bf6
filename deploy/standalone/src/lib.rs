//! Both services in one process, and what the demo feeds them with.
//!
//! - [`sample`]: a platform made from a seed, fitted to a real trace.
//! - [`replay`]: real files instead.

pub mod replay;
pub mod sample;
pub mod time;
