//! Tests with the real binaries: they start processes, send signals, read reports. Each module is a
//! theme. What one crate can show alone is tested beside its code, not here.

#[path = "integration/bad_input.rs"]
mod bad_input;
#[path = "integration/best_model.rs"]
mod best_model;
#[path = "integration/binaries.rs"]
mod binaries;
#[path = "integration/budget.rs"]
mod budget;
#[path = "integration/cache.rs"]
mod cache;
#[path = "integration/device.rs"]
mod device;
#[path = "integration/generated.rs"]
mod generated;
#[path = "integration/gpu_cache.rs"]
mod gpu_cache;
#[path = "integration/killed.rs"]
mod killed;
#[path = "integration/plain_loop.rs"]
mod plain_loop;
#[path = "integration/predict.rs"]
mod predict;
#[path = "integration/pulls_ahead.rs"]
mod pulls_ahead;
#[path = "integration/pytorch.rs"]
mod pytorch;
#[path = "integration/quality.rs"]
mod quality;
#[path = "integration/reference.rs"]
mod reference;
#[path = "integration/restart.rs"]
mod restart;
#[path = "integration/tensorboard.rs"]
mod tensorboard;
#[path = "integration/trace.rs"]
mod trace;
#[path = "integration/two_processes.rs"]
mod two_processes;
#[path = "integration/weighted.rs"]
mod weighted;
