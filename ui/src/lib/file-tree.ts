/** Files of a folder as a tree. */

export interface TreeNode {
  name: string;
  /** Below the folder, with "/". */
  path: string;
  /** Of a folder: its folders, then its files. Null for a file. */
  children: TreeNode[] | null;
}

/** The tree of sorted paths; folders come first. */
export function treeOf(files: readonly string[]): TreeNode[] {
  const root: TreeNode[] = [];
  const folders = new Map<string, TreeNode[]>([["", root]]);
  const childrenOf = (path: string): TreeNode[] => {
    const known = folders.get(path);
    if (known !== undefined) return known;
    const cut = path.lastIndexOf("/");
    const children: TreeNode[] = [];
    childrenOf(path.slice(0, Math.max(0, cut))).push({ name: path.slice(cut + 1), path, children });
    folders.set(path, children);
    return children;
  };
  for (const path of files) {
    const cut = path.lastIndexOf("/");
    childrenOf(path.slice(0, Math.max(0, cut))).push({ name: path.slice(cut + 1), path, children: null });
  }
  for (const children of folders.values()) {
    children.sort((a, b) => Number(a.children === null) - Number(b.children === null) || a.name.localeCompare(b.name));
  }
  return root;
}

/** The nodes that are seen when the folders of `open` are. */
export function visible(nodes: readonly TreeNode[], open: ReadonlySet<string>, depth = 0): { node: TreeNode; depth: number }[] {
  return nodes.flatMap((node) => [
    { node, depth },
    ...(node.children !== null && open.has(node.path) ? visible(node.children, open, depth + 1) : []),
  ]);
}
