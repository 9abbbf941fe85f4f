//! NVIDIA's management library, where it is installed: which GPUs the driver has.
//!
//! It is loaded when it is asked for and never linked, since most nodes have none. Only what is
//! needed is declared: names and places of devices.
#![expect(
    unsafe_code,
    reason = "a library of the machine's own is opened and called; a crate for it would bring \
              bindings to a thousand functions, of which six are used"
)]

use pronto_payloads::limits;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `NVML_DEVICE_NAME_V2_BUFFER_SIZE`.
const NAME_BYTES: u32 = 96;
const SUCCESS: c_int = 0;

/// `nvmlDevice_t`.
type Device = *mut c_void;

/// `nvmlPciInfo_t` as `nvmlDeviceGetPciInfo_v3` fills it.
#[repr(C)]
struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

/// The library, open for as long as this process lives: it has threads and handlers of its own,
/// which don't survive being unloaded.
struct Library(*mut c_void);

impl Library {
    fn open(path: &Path) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: `name` is a NUL-terminated string; constructors of a library that the
        // administrator named, or the machine has for this, may run.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlopen has just failed on this thread, so there is a text of it.
            let text = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(text.to_string_lossy().into_owned());
        }
        Ok(Self(handle))
    }

    fn symbol(&self, name: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: the handle is open and `name` NUL-terminated.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if symbol.is_null() {
            return Err(format!("it has no {}", name.to_string_lossy()));
        }
        Ok(symbol)
    }
}

/// A function of the library with its signature in `nvml.h`.
macro_rules! function {
    ($library:expr, $name:literal, $signature:ty) => {{
        let symbol = $library.symbol($name)?;
        // SAFETY: the signature is that of the function of this name in NVIDIA's nvml.h, whose
        // versioned names keep it for ever.
        unsafe { std::mem::transmute::<*mut c_void, $signature>(symbol) }
    }};
}

/// The models of all GPUs, in the order of their PCI addresses, which is that of
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
///
/// # Errors
///
/// Why the library can't be asked, in words.
pub(super) fn models(path: &Path) -> Result<Vec<String>, String> {
    if cfg!(target_feature = "crt-static") {
        return Err("this build can't load libraries".to_owned());
    }
    let library = Library::open(path)?;
    let init = function!(library, c"nvmlInit_v2", unsafe extern "C" fn() -> c_int);
    let shutdown = function!(library, c"nvmlShutdown", unsafe extern "C" fn() -> c_int);
    // SAFETY: initialisation has no precondition.
    answered("nvmlInit_v2", unsafe { init() })?;
    let models = initialised_models(&library);
    // SAFETY: it was initialised. That it fails changes nothing for us.
    unsafe { shutdown() };
    models
}

fn initialised_models(library: &Library) -> Result<Vec<String>, String> {
    let count = function!(
        library,
        c"nvmlDeviceGetCount_v2",
        unsafe extern "C" fn(*mut c_uint) -> c_int
    );
    let by_index = function!(
        library,
        c"nvmlDeviceGetHandleByIndex_v2",
        unsafe extern "C" fn(c_uint, *mut Device) -> c_int
    );
    let pci_info = function!(
        library,
        c"nvmlDeviceGetPciInfo_v3",
        unsafe extern "C" fn(Device, *mut PciInfo) -> c_int
    );
    let name_of = function!(
        library,
        c"nvmlDeviceGetName",
        unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int
    );
    let mut devices = 0;
    // SAFETY: the library is initialised, and `devices` is ours.
    answered("nvmlDeviceGetCount_v2", unsafe { count(&raw mut devices) })?;
    let most = u32::try_from(limits::GPUS).unwrap_or(u32::MAX);
    let mut found = Vec::new();
    for index in 0..devices.min(most) {
        let mut device = std::ptr::null_mut();
        // SAFETY: `device` is ours to be filled.
        let answer = unsafe { by_index(index, &raw mut device) };
        answered("nvmlDeviceGetHandleByIndex_v2", answer)?;
        // SAFETY: every field is a number or an array of them, of which zeros are values.
        let mut pci: PciInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the handle was just given out, and `pci` has the layout that version 3 fills.
        let answer = unsafe { pci_info(device, &raw mut pci) };
        answered("nvmlDeviceGetPciInfo_v3", answer)?;
        let mut name = [0_u8; NAME_BYTES as usize];
        // SAFETY: the buffer is as long as is said.
        let answer = unsafe { name_of(device, name.as_mut_ptr().cast(), NAME_BYTES) };
        answered("nvmlDeviceGetName", answer)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        let name = name.to_string_lossy().trim().to_owned();
        found.push(((pci.domain, pci.bus, pci.device), name));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

fn answered(function: &str, answer: c_int) -> Result<(), String> {
    if answer == SUCCESS {
        return Ok(());
    }
    Err(format!("{function} answers {answer}"))
}
