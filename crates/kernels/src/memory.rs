//! Memory that the allocator keeps.

/// Gives what was freed back to the system. glibc keeps the pages of small blocks for later, each of its arenas its
/// own; what loading a model frees on the way stays a burden of tens of megabytes. Other allocators look after this
/// themselves: there it does nothing.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` may be called at any time from any thread; it takes the locks of the arenas, and gives
    // away whole pages that hold no block alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
        let n_pages: usize = text.split(' ').nth(1).expect("the second field").parse().expect("a number");
        n_pages * 4096
    }

    #[test]
    fn freed_blocks_go_back_to_the_system() {
        let mut blocks: Vec<Vec<u8>> = (0..4096).map(|n| vec![n as u8; 16 << 10]).collect();
        // What lies at the end keeps glibc from giving back the rest by itself.
        let last = blocks.pop();
        drop(blocks);
        let before = resident_bytes();
        give_back_freed_memory();
        let given_back = before.saturating_sub(resident_bytes());
        assert!(given_back > 32 << 20, "{given_back} of 64 MiB went back");
        assert!(last.is_some_and(|block| block.iter().all(|&byte| byte == 4095u32 as u8)));
    }
}
