//! The default ports, stated once for all daemons and the CLI. Nothing here listens.

/// Scheduler: sessions of launchers and controllers.
pub const SCHEDULER_FRAMES: u16 = 7460;
/// Scheduler: `/metrics`, `/healthz`, `/readyz`.
pub const SCHEDULER_OPS: u16 = 7461;
/// Launcher: `/metrics`, `/healthz`, `/readyz`.
pub const LAUNCHER_OPS: u16 = 7462;
/// Controller: the HTTPS API of users and admins, `/metrics` included.
pub const CONTROLLER_API: u16 = 7470;
