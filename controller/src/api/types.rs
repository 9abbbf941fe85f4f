//! Every JSON request and response of the HTTP API, and the list of its routes.
//!
//! The command line decodes these very types, so a change here is a change of the public API. The
//! handlers stand beside this module; nothing here decides anything. Requests refuse unknown
//! fields; responses may grow new ones. Units stand last in names; times are RFC 3339 strings in
//! UTC; durations are whole milliseconds or nanoseconds.
//!
//! An `{id}` in a path is a whole UUID, a unique suffix of one (at least six hex digits: the tail
//! of a UUIDv7 is random), or an instance's name. Short forms are looked up among the caller's own
//! tenant's instances; an administrator's among all, or those of `?tenant=`.
//!
//! | route | request | response |
//! |---|---|---|
//! | `POST /v1/instances` | [`SubmitRequest`] | 201 [`SubmitResponse`] (200 when repeated) |
//! | `GET /v1/instances` | [`ListInstances`] in the query | [`InstanceList`]; with `watch=true` server-sent events `instance`, data [`Instance`] |
//! | `GET /v1/instances/{id}` | `?reveal=env` | [`InstanceDetail`] |
//! | `DELETE /v1/instances/{id}` | | 202 [`Instance`]: stops it if it lives, then forgets it and its files |
//! | `POST /v1/instances/{id}/stop` | [`StopRequest`] | 202 [`Instance`] |
//! | `POST /v1/instances/{id}/restart` | [`RestartRequest`] | 202 [`Instance`] |
//! | `GET /v1/instances/{id}/output` | [`OutputQuery`] | framed stream, ends with [`OutputEnd`] |
//! | `POST /v1/instances/{id}/stdin` | raw bytes; their end is the end of input | 204 |
//! | `POST /v1/instances/{id}/exec` | [`ExecRequest`]; as frames, with standard input behind it | framed stream, ends with [`ExecEnd`] |
//! | `GET /v1/instances/{id}/files` | [`FileQuery`] | framed stream (channel 3), ends with [`FileEnd`] |
//! | `PUT /v1/instances/{id}/files` | [`PutFileQuery`], raw bytes, `Content-Length` | [`FileEnd`] |
//! | `GET /v1/instances/{id}/listing` | [`ListingQuery`] | [`FileListing`] |
//! | `GET /v1/submissions/{request_id}` | [`SubmissionQuery`] | [`Submission`]: counts by state, cheap |
//! | `GET /v1/workloads` | `?tenant=` | [`WorkloadList`] |
//! | `POST /v1/workloads` | [`CreateWorkload`] | 201 [`Workload`] |
//! | `GET /v1/workloads/{name}` | `?reveal=env` | [`Workload`] |
//! | `PUT /v1/workloads/{name}` | [`CreateWorkload`] | [`Workload`] |
//! | `DELETE /v1/workloads/{name}` | | 204 |
//! | `GET /v1/tenants` | | [`TenantList`] (a user sees its own) |
//! | `POST /v1/tenants` | [`CreateTenant`] | 201 [`Tenant`] |
//! | `GET /v1/tenants/{tenant}` | | [`Tenant`] |
//! | `PATCH /v1/tenants/{tenant}` | [`UpdateTenant`] | [`Tenant`] |
//! | `DELETE /v1/tenants/{tenant}` | | 204; 409 while instances of it live |
//! | `GET /v1/quotas` | | [`QuotaList`] |
//! | `GET /v1/quotas/{tenant}` | | [`Quota`] |
//! | `PATCH /v1/quotas/{tenant}` | [`UpdateQuota`] | [`Quota`] |
//! | `GET /v1/nodes` | | [`NodeList`] |
//! | `GET /v1/nodes/{node}` | | [`Node`] |
//! | `POST /v1/nodes/{node}/drain` | [`DrainRequest`] | 202 [`Node`] |
//! | `POST /v1/nodes/{node}/restore` | | [`Node`] |
//! | `DELETE /v1/nodes/{node}` | `?fenced=true` | 204 |
//! | `GET /v1/events` | [`ListEvents`] in the query | [`EventList`]; with `follow=true` server-sent events `event`, data [`EventRecord`] |
//! | `POST /v1/explain` | [`ExplainRequest`] | [`ExplainResponse`] |
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/alarms/resume` | | 204: an administrator ends a suspension of rescheduling |
//! | `GET /v1/openapi.json` | | the OpenAPI document |
//! | `GET /metrics`, `/healthz`, `/readyz` | | text |
//!
//! Every refusal has the body [`ErrorBody`].
//!
//! # Framed streams
//! Content type `application/vnd.pronto.frames`. Each frame: one byte of channel, four bytes of
//! length (little-endian), so many bytes. Channel 1 is standard output, 2 standard error, 3 a
//! file's bytes; channel 0 carries one JSON document and is the last frame. A body that ends
//! without it was cut off. An empty frame on channel 1 is a sign of life.
//!
//! A request of `exec` with that content type is one frame on channel 0 with the [`ExecRequest`],
//! and behind it, unframed and to the end of the body, the command's standard input. Both bodies
//! stream at the same time. A request that breaks off ends the command.

mod errors;
mod instances;
mod nodes;
mod spec;
mod tenants;

pub use errors::*;
pub use instances::*;
pub use nodes::*;
pub use spec::*;
pub use tenants::*;

/// The content type of a framed stream.
pub const FRAMES_CONTENT_TYPE: &str = "application/vnd.pronto.frames";
/// The channel of a framed stream's last frame, a JSON document.
pub const CHANNEL_END: u8 = 0;
/// Standard output in a framed stream.
pub const CHANNEL_STDOUT: u8 = 1;
/// Standard error in a framed stream.
pub const CHANNEL_STDERR: u8 = 2;
/// A file's bytes in a framed stream.
pub const CHANNEL_FILE: u8 = 3;
/// The header of a framed stream's frame: channel and length.
pub const FRAME_HEADER_BYTES: usize = 5;
/// Most instances that one submission may ask for.
pub const MAX_COUNT: u32 = 100_000;
/// The header in which a PUT of a file may carry its SHA-256, in hex.
pub const SHA256_HEADER: &str = "x-pronto-sha256";
