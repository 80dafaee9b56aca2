/** Work that waits for the work before it, so that answers come in the order of what was asked. */
export function inOrder(): (work: () => Promise<void>) => Promise<void> {
  let last = Promise.resolve();
  return (work) => {
    const next = last.then(work);
    // What failed holds nothing up.
    last = next.catch(() => undefined);
    return next;
  };
}
