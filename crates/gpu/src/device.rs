//! Devices: which there are, and one that is opened.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cubecl::cuda::{CudaDevice, CudaRuntime, install};
use cubecl::ir::features::{MmaConfig, Plane};
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::stream_id::StreamId;
use cubecl::wgpu::{WgpuDevice, WgpuRuntime};

use crate::GpuError;
use crate::attention::MAX_LANES;

/// The interface that a device is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// CUDA, by the driver's library and NVRTC, both looked for when they are wanted.
    Cuda,
    /// Vulkan.
    Vulkan,
    /// Metal.
    Metal,
}

impl Api {
    /// As it is written in front of a number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        }
    }
}

/// A device of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// How it is reached.
    pub api: Api,
    /// Its number among those of its interface.
    pub index: usize,
    /// What its driver calls it.
    pub name: String,
    /// Whether it is a program that pretends.
    pub is_software: bool,
    /// Its memory, where the interface says.
    pub memory_bytes: Option<u64>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Cuda(usize),
    Wgpu(WgpuDevice),
}

impl DeviceInfo {
    /// Like `vulkan:0`.
    pub fn id(&self) -> String {
        format!("{}:{}", self.api.name(), self.index)
    }

    /// Those that this machine's drivers name; those that are none by their drivers' mistake included.
    pub fn all() -> Vec<Self> {
        let mut devices = cuda_devices();
        devices.extend(wgpu_devices());
        devices
    }

    /// The device that is called `id`, like `vulkan:0`; without a number it is the first.
    ///
    /// # Errors
    /// [`GpuError::NoDevice`].
    pub fn find(id: &str) -> Result<Self, GpuError> {
        let all = Self::all();
        let found =
            all.iter().find(|device| device.id() == id || device.index == 0 && device.api.name() == id);
        found.cloned().ok_or_else(|| {
            let ids: Vec<String> =
                all.iter().map(|device| format!("{} ({})", device.id(), device.name)).collect();
            let mut known = match ids.is_empty() {
                true => "no driver for CUDA, Vulkan or Metal names one".to_owned(),
                false => format!("there are {}", ids.join(", ")),
            };
            if let Some(missing) = missing_for_cuda().filter(|_| id.starts_with(Api::Cuda.name())) {
                known = format!("{known}; for CUDA {missing}");
            }
            GpuError::NoDevice { name: id.to_owned(), known }
        })
    }
}

fn cuda_devices() -> Vec<DeviceInfo> {
    use cudarc::driver::result;
    if missing_for_cuda().is_some() || result::init().is_err() {
        return Vec::new();
    }
    let n_devices = result::device::get_count().unwrap_or(0);
    let named = (0..n_devices).filter_map(|idx| {
        let device = result::device::get(idx).ok()?;
        let name = result::device::get_name(device).ok()?;
        // SAFETY: the device is one that the driver has just named.
        let memory_bytes = unsafe { result::device::total_mem(device) }.ok().map(|bytes| bytes as u64);
        let index = idx as usize;
        let kind = Kind::Cuda(index);
        Some(DeviceInfo { api: Api::Cuda, index, name, is_software: false, memory_bytes, kind })
    });
    named.collect()
}

/// What this machine lacks, in words. Kernels are compiled where they run; without this the runtime would end in a panic
/// of a thread of its own. Who lacks it uses Vulkan.
fn missing_for_cuda() -> Option<String> {
    // A program that is linked with them does not start without.
    #[cfg(feature = "linked-cuda")]
    let [has_driver, has_compiler] = [true; 2];
    // SAFETY: these load libraries of the system, which are trusted to be what they are called.
    #[cfg(not(feature = "linked-cuda"))]
    let [has_driver, has_compiler] =
        unsafe { [cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()] };
    if !has_driver {
        return Some("the driver's library (libcuda) is missing".to_owned());
    }
    if !has_compiler {
        return Some("its compiler (libnvrtc, of the CUDA toolkit) is missing".to_owned());
    }
    let header = install::cuda_path().map(|path| path.join("include/cuda_runtime.h"));
    match header {
        None => Some("the toolkit is missing: CUDA_PATH says where it is".to_owned()),
        Some(header) if !header.exists() => Some(format!("{} is missing", header.display())),
        Some(_) => None,
    }
}

fn wgpu_devices() -> Vec<DeviceInfo> {
    let backend = if cfg!(target_os = "macos") { wgpu::Backends::METAL } else { wgpu::Backends::VULKAN };
    let api = if cfg!(target_os = "macos") { Api::Metal } else { Api::Vulkan };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(backend));
    let mut n_of_kind = [0usize; 3];
    let mut devices = Vec::new();
    for (index, adapter) in adapters.into_iter().enumerate() {
        let info = adapter.get_info();
        let mut next = |kind: usize| {
            n_of_kind[kind] += 1;
            n_of_kind[kind] - 1
        };
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(next(0)),
            wgpu::DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(next(1)),
            wgpu::DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(next(2)),
            wgpu::DeviceType::Cpu => WgpuDevice::Cpu,
            wgpu::DeviceType::Other => continue,
        };
        let is_software = info.device_type == wgpu::DeviceType::Cpu;
        let kind = Kind::Wgpu(kind);
        let memory_bytes = local_memory(&adapter);
        devices.push(DeviceInfo { api, index, name: info.name, is_software, memory_bytes, kind });
    }
    devices
}

/// Bytes of the largest heap that is the device's own, by Vulkan.
#[cfg(not(target_os = "macos"))]
fn local_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT` of the Vulkan specification.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter's handle is read while the adapter lives, and neither kept nor destroyed.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device is one of this instance.
    let memory = unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let heaps = memory.memory_heaps_as_slice().iter();
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

/// Metal shares the machine's memory.
#[cfg(target_os = "macos")]
fn local_memory(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Numbers on a device.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(crate) handle: Handle,
    /// Numbers of 32 bits.
    len: usize,
}

impl Buffer {
    /// Numbers of 32 bits in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[derive(Clone)]
pub(crate) enum Client {
    Cuda(ComputeClient<CudaRuntime>),
    Wgpu(ComputeClient<WgpuRuntime>),
}

/// Does the same on the client of either runtime, which is called `$client`, its type `$runtime`.
macro_rules! on_client {
    ($device:expr, $client:ident, $runtime:ident => $do:expr) => {
        match &$device.client {
            crate::device::Client::Cuda($client) => {
                type $runtime = cubecl::cuda::CudaRuntime;
                $do
            }
            crate::device::Client::Wgpu($client) => {
                type $runtime = cubecl::wgpu::WgpuRuntime;
                $do
            }
        }
    };
}
pub(crate) use on_client;

/// A device that is opened. Clones work on the same device.
#[derive(Clone)]
pub struct Device {
    pub(crate) client: Client,
    info: DeviceInfo,
    max_buffer_bytes: usize,
    has_matrix_units: bool,
    has_planes: bool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device {} ({})", self.info.id(), self.info.name)
    }
}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// [`GpuError::Open`].
    pub fn open(info: &DeviceInfo) -> Result<Self, GpuError> {
        // Runtimes panic where a driver fails.
        let client = catch_unwind(AssertUnwindSafe(|| match &info.kind {
            Kind::Cuda(index) => {
                Client::Cuda(on_one_stream(CudaRuntime::client(&CudaDevice { index: *index })))
            }
            Kind::Wgpu(device) => Client::Wgpu(on_one_stream(WgpuRuntime::client(device))),
        }));
        let client =
            client.map_err(|panic| GpuError::Open { name: info.name.clone(), reason: words_of(&*panic) })?;
        let max_buffer_bytes = match &client {
            Client::Cuda(client) => client.properties().memory.max_page_size,
            Client::Wgpu(client) => client.properties().memory.max_page_size,
        };
        let max_buffer_bytes = usize::try_from(max_buffer_bytes).unwrap_or(usize::MAX);
        let has_matrix_units = match &client {
            Client::Cuda(client) => {
                let has = &client.features().matmul.mma;
                matrix_instructions().iter().all(|instruction| has.contains(instruction))
            }
            Client::Wgpu(_) => false,
        };
        let (features, hardware) = match &client {
            Client::Cuda(client) => (client.features(), &client.properties().hardware),
            Client::Wgpu(client) => (client.features(), &client.properties().hardware),
        };
        let has_planes = features.plane.contains(Plane::Ops) && hardware.plane_size_min >= MAX_LANES;
        Ok(Self { client, info: info.clone(), max_buffer_bytes, has_matrix_units, has_planes })
    }

    /// Which it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Whether it has matrix units, which multiply small matrices in one instruction and take packed rows of activations.
    pub fn packs_rows(&self) -> bool {
        self.has_matrix_units
    }

    /// Whether units beside each other, in groups of [`MAX_LANES`], see each other's numbers.
    pub(crate) fn has_planes(&self) -> bool {
        self.has_planes
    }

    /// Bytes of the largest buffer.
    pub fn max_buffer_bytes(&self) -> usize {
        self.max_buffer_bytes
    }

    /// A buffer of `len` numbers of 32 bits, whose values are none yet.
    ///
    /// # Errors
    /// [`GpuError::BufferTooLarge`].
    pub fn empty(&self, len: usize) -> Result<Buffer, GpuError> {
        let n_bytes = len.max(1) * 4;
        self.check_size(n_bytes)?;
        let handle = on_client!(self, client, _R => client.empty(n_bytes));
        Ok(Buffer { handle, len })
    }

    /// A buffer with these bytes, which are whole numbers of 32 bits.
    ///
    /// # Errors
    /// [`GpuError::BufferTooLarge`].
    ///
    /// # Panics
    /// When they are not whole numbers.
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer, GpuError> {
        assert!(bytes.len().is_multiple_of(4), "whole numbers");
        self.check_size(bytes.len())?;
        let padded = if bytes.is_empty() { &[0; 4] } else { bytes };
        let handle = on_client!(self, client, _R => client.create_from_slice(padded));
        Ok(Buffer { handle, len: bytes.len() / 4 })
    }

    /// [`upload`](Self::upload) of numbers.
    ///
    /// # Errors
    /// [`GpuError::BufferTooLarge`].
    pub fn upload_f32(&self, values: &[f32]) -> Result<Buffer, GpuError> {
        self.upload(f32::as_bytes(values))
    }

    /// [`upload`](Self::upload) of numbers.
    ///
    /// # Errors
    /// [`GpuError::BufferTooLarge`].
    pub fn upload_u32(&self, values: &[u32]) -> Result<Buffer, GpuError> {
        self.upload(u32::as_bytes(values))
    }

    /// The first numbers of buffers, as bytes, once all that was asked for before is done.
    ///
    /// # Errors
    /// [`GpuError::Failed`] when something of it failed.
    ///
    /// # Panics
    /// When a buffer has fewer.
    pub fn read(&self, buffers: &[(&Buffer, usize)]) -> Result<Vec<Vec<u8>>, GpuError> {
        let part = |&(buffer, n): &(&Buffer, usize)| {
            assert!(n <= buffer.len, "numbers of the buffer");
            buffer.handle.clone().offset_end(4 * (buffer.len.max(1) - n.max(1)) as u64)
        };
        let handles: Vec<Handle> = buffers.iter().map(part).collect();
        let read = catch_unwind(AssertUnwindSafe(
            || on_client!(self, client, _R => cubecl::future::block_on(client.read_async(handles))),
        ));
        let bytes = read
            .map_err(|panic| GpuError::Failed { reason: words_of(&*panic) })?
            .map_err(|error| GpuError::Failed { reason: first_lines(&error.to_string()) })?;
        Ok(bytes.into_iter().zip(buffers).map(|(bytes, (_, n))| bytes[..n * 4].to_vec()).collect())
    }

    /// [`read`](Self::read) of one whole buffer of numbers.
    ///
    /// # Errors
    /// [`GpuError::Failed`].
    pub fn read_f32(&self, buffer: &Buffer) -> Result<Vec<f32>, GpuError> {
        let bytes = self.read(&[(buffer, buffer.len)])?;
        let (words, _) = bytes[0].as_chunks::<4>();
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }

    fn check_size(&self, n_bytes: usize) -> Result<(), GpuError> {
        match n_bytes <= self.max_buffer_bytes {
            true => Ok(()),
            false => Err(GpuError::BufferTooLarge { n_bytes, max_bytes: self.max_buffer_bytes }),
        }
    }
}

/// A client whose work is done in the order it is asked for, whichever threads ask: one thread loads what another uses,
/// and streams of their own would have to wait for each other.
fn on_one_stream<R: Runtime>(mut client: ComputeClient<R>) -> ComputeClient<R> {
    // SAFETY: all clients of a device are on this stream, so none sees memory that another stream still works on.
    unsafe { client.set_stream(StreamId { value: 0 }) };
    client
}

/// What [`crate::matrix_units`] needs.
fn matrix_instructions() -> [MmaConfig; 3] {
    let bytes = (ElemType::Int(IntKind::I8), ElemType::Int(IntKind::I32), 32);
    let numbers = |kind| (ElemType::Float(kind), ElemType::Float(FloatKind::F32), 16);
    [bytes, numbers(FloatKind::F16), numbers(FloatKind::BF16)].map(|(factor, sum, k)| MmaConfig {
        a_type: factor.into(),
        b_type: factor.into(),
        cd_type: sum.into(),
        m: 16,
        n: 8,
        k,
    })
}

/// A panic's message.
fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let words =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    first_lines(words.unwrap_or("for no reason that it gives"))
}

/// Errors of the runtime bring a backtrace along.
fn first_lines(error: &str) -> String {
    error.lines().take_while(|line| !line.starts_with("Backtrace")).collect::<Vec<_>>().join(" ")
}
