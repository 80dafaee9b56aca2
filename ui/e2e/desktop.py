"""The parts of a desktop that show icons in a tray and notifications, for the tests.

What they are told is appended to the file that is named as the only argument. `Click` on the test's own interface is the
user in the menu of the icon.
"""

import sys

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

WATCHER = "org.kde.StatusNotifierWatcher"
NOTIFICATIONS = "org.freedesktop.Notifications"
MENU = "com.canonical.dbusmenu"


def tell(words):
    with open(sys.argv[1], "a", encoding="utf-8") as told:
        told.write(words + "\n")


class Tray(dbus.service.Object):
    menu = None
    labels = {}

    @dbus.service.method(WATCHER, in_signature="s", sender_keyword="sender")
    def RegisterStatusNotifierItem(self, item, sender=None):
        # Not from within the call: the program that makes it waits for its answer.
        GLib.idle_add(self.look, sender, item)

    def look(self, sender, item):
        path = item if item.startswith("/") else "/StatusNotifierItem"
        properties = dbus.Interface(self.connection.get_object(sender, path), dbus.PROPERTIES_IFACE)
        menu = properties.Get("org.kde.StatusNotifierItem", "Menu")
        self.menu = dbus.Interface(self.connection.get_object(sender, menu), MENU)
        _, (_, _, children) = self.menu.GetLayout(0, -1, dbus.Array([], signature="s"))
        self.labels = {str(properties["label"]): number for number, properties, _ in children if "label" in properties}
        tell("tray: " + ", ".join(self.labels))

    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return self.GetAll(interface)[name]

    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="s", out_signature="a{sv}")
    def GetAll(self, interface):
        return {
            "IsStatusNotifierHostRegistered": True,
            "ProtocolVersion": dbus.Int32(0),
            "RegisteredStatusNotifierItems": dbus.Array([], signature="s"),
        }

    @dbus.service.method("dev.sateen.Test", in_signature="s")
    def Click(self, label):
        self.menu.Event(self.labels[label], "clicked", dbus.Int32(0, variant_level=1), dbus.UInt32(0), ignore_reply=True)


class Notifications(dbus.service.Object):
    @dbus.service.method(NOTIFICATIONS, in_signature="susssasa{sv}i", out_signature="u")
    def Notify(self, program, replaces, icon, title, body, actions, hints, timeout):
        tell(f"notification: {title}: {body}")
        return 1

    @dbus.service.method(NOTIFICATIONS, out_signature="as")
    def GetCapabilities(self):
        return ["body"]

    @dbus.service.method(NOTIFICATIONS, out_signature="ssss")
    def GetServerInformation(self):
        return ("test", "sateen", "1", "1.2")


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SessionBus()
notifications = Notifications(dbus.service.BusName(NOTIFICATIONS, bus), "/org/freedesktop/Notifications")
tray = Tray(dbus.service.BusName(WATCHER, bus), "/StatusNotifierWatcher")
GLib.MainLoop().run()
