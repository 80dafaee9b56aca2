/** The caret: it blinks for a while, then rests, so that a window that nobody types into draws nothing. */

const BLINK_MS = 600;
/** As GTK has it: where there is no graphics card each drawing costs, and nobody looks for a caret that was left long ago. */
const BLINKING_MS = 10_000;

export class Caret {
  private timer: ReturnType<typeof setInterval> | undefined;

  /** `show` is told whether it is to be seen; it goes off only while it may, which is while the editor has the focus. */
  constructor(
    private readonly show: (isSeen: boolean) => void,
    private readonly mayGoOff: () => boolean,
  ) {}

  /** Shows it, and lets it blink for a while; for those who want no motion it stays. */
  blink(wantsMotion: boolean): void {
    this.stop();
    this.show(true);
    if (!wantsMotion) return;
    let left = Math.floor(BLINKING_MS / BLINK_MS);
    let isSeen = true;
    this.timer = setInterval(() => {
      left -= 1;
      isSeen = !isSeen || left <= 0 || !this.mayGoOff();
      this.show(isSeen);
      if (left <= 0) this.stop();
    }, BLINK_MS);
  }

  /** It stays as it is. */
  stop(): void {
    clearInterval(this.timer);
  }
}
