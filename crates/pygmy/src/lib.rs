//! pygmy
